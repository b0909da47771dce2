"""The table that decides where the tiny profile is rewritten, before any rewritten arm is computed.

For each layer and coder: what the site is worth, what the coder recovers, what its latents carry, and how far the
controls get that need no sentence (token lookup, bigram lookup, the oracle mask). Fitted on the explain split, measured
on the calibrate split; the report split is never read.

    python -m benchmarks.choose_site --layers 0 1 2 --widths 512 1024 2048
"""

import argparse
import json

import numpy as np
import torch

from nlrewrite import steps
from nlrewrite.activations import codes, pairs
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.calibrate import lookup
from nlrewrite.coders import form
from nlrewrite.evaluate import bootstrap
from nlrewrite.evaluate.arms import Writer
from nlrewrite.evaluate.build import site_means
from nlrewrite.evaluate.losses import losses
from nlrewrite.execution import Execution
from nlrewrite.pipeline import decide
from nlrewrite.profiles import Overrides, resolve
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.specs import RewriteSpec, Spec
from nlrewrite.subject import load, sites
from nlrewrite.text.positions import positions
from nlrewrite.text.tokens import read_windows

COLUMNS = ("mlp_mean", "coder", "mean", "zero", "token", "bigram", "oracle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--widths", type=int, nargs="+", default=[1024])
    parser.add_argument("--k", type=int, nargs="+", default=[16])
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--store", default="store")
    given = parser.parse_args()
    execution = Execution(store=given.store)
    print(
        "| layer | latents | k | live | recovered | "
        + " | ".join(COLUMNS)
        + " | carried [low] | gap: token / bigram / oracle |"
    )
    print("|---" * (len(COLUMNS) + 7) + "|")
    for layer in given.layers:
        for width in given.widths:
            for k in given.k:
                settings = (f"coder.site.layer={layer}", f"coder.width={width}", f"coder.k={k}")
                spec = resolve(given.profile, Overrides(settings=settings), execution)
                print(row(spec, Store(given.store), execution), flush=True)


def row(spec: RewriteSpec, store: Store, execution: Execution) -> str:
    def step(kind: str, its: Spec, **inputs: Artifact) -> Artifact:
        artifact, finding = decide(store, kind, kind, its, inputs)
        if not finding.hit:
            steps.build(artifact, its, inputs, store, execution, Progress(), "choose-site", finding)
        return artifact

    corpus = step("corpus", spec.text)
    subject = step("subject", spec.subject, corpus=corpus)
    tokens = step("tokens", spec.tokens, corpus=corpus, subject=subject)
    coder = step("coder", spec.coder, subject=subject, tokens=tokens)
    active = {
        split: step(
            "activations",
            spec.activations.model_copy(update={"split": split}),
            subject=subject,
            tokens=tokens,
            coder=coder,
        )
        for split in ("explain", "calibrate")
    }
    folders = {
        name: store.folder(each)
        for name, each in {**active, "coder": coder, "tokens": tokens, "subject": subject}.items()
    }
    return measure(spec, folders, execution)


def measure(spec: RewriteSpec, folders: dict[str, Folder], execution: Execution) -> str:
    coder = form.read(folders["coder"])
    trained = json.loads(folders["coder"].path("training.json").read_text())
    model = load.model(folders["subject"], execution)
    located = sites.locate(model, spec.coder.site)
    windows = read_windows(folders["tokens"], "calibrate")
    vocabulary = json.loads(folders["tokens"].path("tokens.json").read_text())["vocabulary"]
    seen = {
        split: lookup.Seen(
            positions(read_windows(folders["tokens"], split)),
            codes.true_codes(pairs.read(folders[split]), coder.latents),
        )
        for split in ("explain", "calibrate")
    }
    fitted, measured = seen["explain"], seen["calibrate"]
    where, dec_LE = measured.where, coder.dec_LE.numpy()
    strengths = lookup.best_strengths(fitted, measured, vocabulary, dec_LE)
    total = np.asarray(fitted.truth.extra_PL.sum(0)).ravel()
    often = np.maximum(fitted.truth.extra_PL.getnnz(axis=0), 1)
    _, y_mean = site_means(model, located, read_windows(folders["tokens"], "explain"), execution.batch_tokens)
    writer = Writer(coder, measured.truth)
    values = {
        "coder": measured.truth,
        "mean": codes.constant_codes(total / len(fitted.where), len(where)),
        "zero": codes.constant_codes(np.zeros(coder.latents), len(where)),
        "token": lookup.token_lookup([fitted], where, vocabulary, strengths[0]),
        "bigram": lookup.bigram_lookup([fitted], where, vocabulary, strengths[1], strengths[0]),
        "oracle": codes.oracle_codes(pairs.read(folders["calibrate"]), total / often),
    }
    arms = {name: ("all", writer.latents(each)) for name, each in values.items()}
    arms |= {"original": ("all", None), "mlp_mean": ("all", lambda rows, x, y: y_mean.expand(len(rows), -1))}
    found = losses(model, located, windows, arms, execution.batch_tokens, Progress())
    _, of_position = np.unique(where.group, return_inverse=True)
    names = list(arms)
    sums = np.stack([np.bincount(of_position, found[name].ce) for name in names], axis=1)
    drawn = bootstrap.resample(sums, np.bincount(of_position), 2000, generator(0, "choose-site"))
    at = {name: index for index, name in enumerate(names)}
    added = {name: drawn.difference(at[name], at["original"]).mean for name in COLUMNS}
    carried = drawn.difference(at["mean"], at["coder"])
    gaps = []
    for name in ("token", "bigram", "oracle"):
        gap = drawn.share(at["mean"], at["coder"], at[name])
        gaps.append(f"{gap.mean:.3f}" if gap else "-")
    recovered = 1 - added["coder"] / added["mlp_mean"]
    cells = [
        str(spec.coder.site.layer),
        str(spec.coder.width),
        str(spec.coder.k),
        f"{trained['live_share']:.2f}",
        f"{recovered:.3f}",
        *(f"{added[name]:.3f}" for name in COLUMNS),
        f"{carried.mean:.3f} [{carried.low:.3f}]",
        " / ".join(gaps),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
