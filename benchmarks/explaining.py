"""What showing rivals and showing errors adds to the sentences of the rule explainer, on documents it never saw.

    python -m benchmarks.explaining --store store --profile tiny --latents 150

Contrast by no one is the same edit by a latent's own examples alone: what rivals add is what they add to that.
The artifacts of the profile have to be in the store (`make run ARGS='--profile tiny'`). Sentences are edited on the
explain split and measured on the calibrate split: the gain of a sentence is what its predictions, fitted on the other
half of the documents, take off the squared error of the mean at the site's output. Every arm starts from the same plain
sentences; a line of JSON each, with the rise in shares of the plain gain and its 95% intervals over documents and
over latents. Examples are timed too.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from nlrewrite import profiles, steps
from nlrewrite.activations.codes import true_codes
from nlrewrite.activations.pairs import Active, ByLatent, read
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.coders import form
from nlrewrite.composition import rewrite
from nlrewrite.execution import Execution
from nlrewrite.explain import contrast
from nlrewrite.explain.compare import Compared
from nlrewrite.explain.editing import ContrastEditor, RuleEditor, RuleReader, cases_of
from nlrewrite.explain.examples import Text, counter_examples, examples, strength
from nlrewrite.explain.refine import Asked, Editor, Refined, parts, refine
from nlrewrite.language.reading import Contexts
from nlrewrite.language.sentence import Rule, parse, write
from nlrewrite.language.vocabulary import Vocabulary
from nlrewrite.profiles import Overrides
from nlrewrite.seeds import generator
from nlrewrite.simulate.rules import read_sentences
from nlrewrite.specs import RewriteSpec, Spec
from nlrewrite.text.positions import positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

REACH, WINDOW, EXAMPLES, RIVALS, COUNTER = 8, 32, 40, 4, 20


class Split:
    """Text, truth and contexts of one split."""

    def __init__(self, store: Store, made: dict[str, Artifact], split: str, seed: int) -> None:
        windows = read_windows(store.folder(made["tokens"]), split)  # type: ignore[arg-type]
        texts = tuple(token_texts(store.folder(made["subject"]).root()))
        self.contexts = Contexts(positions(windows), Vocabulary(texts), window=REACH + 1)
        self.where = self.contexts.where
        self.text = Text(self.where, texts)
        self.active = read(store.folder(made[f"activations-{split}"]))
        self.shown_P = parts(self.where.group, seed)

    def grouped(self, latents: int, only: np.ndarray | None = None) -> ByLatent:
        values = self.active.values if only is None else self.active.values * only[:, None]
        return Active(self.active.latents, values).by_latent(latents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="store")
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--latents", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quotes", type=int, nargs="*", default=[4, 12], help="lengths of the plain sentences")
    given = parser.parse_args()
    spec = profiles.resolve(given.profile, Overrides(), Execution(store=given.store))
    store = Store(given.store)
    made = artifacts(spec)
    explain, judged = (Split(store, made, split, spec.explain.seed) for split in ("explain", "calibrate"))
    coder = store.folder(made["coder"])
    learned = read_sentences(store.folder(made["explanations"]))
    few = from_examples(explain, learned, spec.explain.max_quotes)
    measure("written from examples", few, spec.explain.max_quotes, spec, coder, explain, judged, given)
    for quotes in given.quotes:
        label = "explanations" if quotes == spec.explain.max_quotes else f"explanations-{quotes}"
        sentences = read_sentences(store.folder(made[label]))
        measure(f"learned, {quotes} quotes", sentences, quotes, spec, coder, explain, judged, given)


def artifacts(spec: RewriteSpec) -> dict[str, Artifact]:
    """The names of all artifacts of a profile, by label."""
    found: dict[str, Artifact] = {}

    def note(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        found[label] = steps.name(kind, spec, inputs)
        return found[label]

    rewrite(spec, note)
    return found


def from_examples(explain: Split, learned: list[str], most: int) -> list[str]:
    """What can be said from EXAMPLES examples and nothing else: the tokens it is active on, each as strongly as there.

    Only of latents that the rule explainer has a sentence for, so that all arms are about the same ones.
    """
    grouped = explain.grouped(len(learned), explain.shown_P)
    found = [""] * len(learned)
    for latent in np.flatnonzero([bool(sentence) for sentence in learned]).tolist():
        shown = examples(explain.text, grouped, latent, EXAMPLES, WINDOW, 0)
        scale = max((float(each.activation.max()) for each in shown), default=0.0)
        strengths: dict[bytes, list[int]] = {}
        for each in shown:
            place = each.position - each.first
            strengths.setdefault(each.tokens[place], []).append(strength(float(each.activation[place]), scale))
        named = sorted(strengths, key=lambda text: (-len(strengths[text]), text))[:most]
        rule = Rule(tuple((text, round(float(np.mean(strengths[text])))) for text in named))
        found[latent] = write(rule) if named else ""
    return found


def measure(
    what: str,
    sentences: list[str],
    quotes: int,
    spec: RewriteSpec,
    coder: Folder,
    explain: Split,
    judged: Split,
    given: argparse.Namespace,
) -> None:
    count, rounds = given.latents, given.rounds
    dec_LE = form.read(coder).dec_LE.numpy()
    total = len(sentences)
    explained = [latent for latent in range(total) if sentences[latent]]
    latents = sorted(generator(0, "benchmark", "explaining").permutation(explained)[:count].tolist())
    plain = [sentences[latent] for latent in latents]
    rules = [parse(sentence) for sentence in plain]
    grouped = explain.grouped(total)
    on_shown = explain.grouped(total, explain.shown_P)
    cases = [
        cases_of(explain.contexts, *grouped.of(latent), explain.shown_P, rule)
        for latent, rule in zip(latents, rules, strict=True)
    ]
    reader = RuleReader(explain.contexts)
    editor = RuleEditor(explain.contexts, quotes, spec.explain.max_words)

    start = time.process_time()
    own = {latent: examples(explain.text, on_shown, latent, EXAMPLES, WINDOW, 0) for latent in latents}
    report(f"{what}: examples", seconds_per_latent=(time.process_time() - start) / len(latents), examples=EXAMPLES)

    said = said_of(explain.contexts, sentences)
    ranked = {
        "no one": np.full((total, 1), contrast.NONE),
        "directions": contrast.by_directions(dec_LE, RIVALS),
        "errors": contrast.by_errors(said, true_codes(explain.active, total).extra_PL, RIVALS),
        "chance": np.stack([generator(0, "rivals", latent).choice(total, RIVALS, False) for latent in range(total)]),
    }

    def judge(name: str, edited: list[str], more: dict[str, Any], base: str = "plain") -> None:
        found = compared(latents, plain if base == "plain" else alone, edited, judged, total, dec_LE)
        report(f"{what}: {name} against {base}", **found, **more)

    alone = plain
    for by, rivals_LC in ranked.items():
        others = {
            latent: counter_examples(
                explain.text,
                on_shown,
                latent,
                [each for each in rivals_LC[latent].tolist() if each >= 0],
                COUNTER,
                WINDOW,
                0,
            )
            for latent in latents
        }
        made, seconds = timed(lambda: ContrastEditor(editor, own, others), latents, plain, cases, reader, 1)  # noqa: B023
        untested = [each.tried[0].sentence if each.tried else old for each, old in zip(made, plain, strict=True)]
        judge(f"contrast by {by}, untested", untested, {"seconds_per_latent": seconds})
        judge(f"contrast by {by}, tested", [each.sentence for each in made], {"seconds_per_latent": seconds})
        if by == "no one":
            alone = untested
        else:
            judge(f"contrast by {by}, untested", untested, {}, "contrast by no one")
    made, seconds = timed(lambda: editor, latents, plain, cases, reader, rounds)
    proposed = sum(len(each.tried) for each in made)
    kept = sum(each.kept for each in made)
    more = {"seconds_per_latent": seconds, "proposed": proposed, "kept": kept}
    judge(f"refined, {rounds} rounds", [each.sentence for each in made], more)
    untested = [each.tried[0].sentence if each.tried else old for each, old in zip(made, plain, strict=True)]
    judge("one round of edits, untested", untested, {})


def named(rivals_C: np.ndarray, latent: int) -> list[int]:
    return [each for each in rivals_C.tolist() if each not in (contrast.NONE, latent)]


def timed(
    editor: Callable[[], Editor],
    latents: list[int],
    plain: list[str],
    cases: list[Any],
    reader: RuleReader,
    rounds: int,
) -> tuple[list[Refined], float]:
    start = time.process_time()
    made = refine(latents, plain, cases, reader, editor(), rounds, 0)
    return made, (time.process_time() - start) / len(latents)


def said_of(contexts: Contexts, sentences: list[str]) -> Any:
    """Levels of all sentences in all contexts, sparse: [P, L]."""
    from scipy import sparse

    found = [contexts.levels(parse(sentence) if sentence else Rule(())) for sentence in sentences]
    column = np.repeat(np.arange(len(found)), [len(position) for position, _ in found])
    row = np.concatenate([position for position, _ in found])
    level = np.concatenate([level for _, level in found]).astype(np.float32)
    return sparse.csr_matrix((level, (row, column)), shape=(len(contexts.where), len(sentences)))


def compared(
    latents: list[int], plain: list[str], edited: list[str], judged: Split, total: int, dec_LE: np.ndarray
) -> dict[str, Any]:
    reader, grouped = RuleReader(judged.contexts), judged.grouped(total)
    found = Compared(np.unique(judged.where.group))
    for latent, before, after in zip(latents, plain, edited, strict=True):
        named = Rule((*parse(before).strengths, *parse(after).strengths))
        cases = cases_of(judged.contexts, *grouped.of(latent), judged.shown_P, named)
        levels = reader.levels([Asked(latent, sentence, cases.position) for sentence in (before, after)])
        found.add(cases, *levels, float(np.square(dec_LE[latent]).sum()), before != after)
    result = found.result()
    return {name: asdict(value) if hasattr(value, "mean") else value for name, value in result.items()}


def report(what: str, **line: Any) -> None:
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} shared cores, {threads} compute threads"
    print(json.dumps({"what": what, **line, "machine": machine}), flush=True)


if __name__ == "__main__":
    main()
