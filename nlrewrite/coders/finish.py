"""What is measured and written down of coders that have been trained.

In: learners behind their last step. Out: `coder.safetensors`, `coder.json`, `training.json` and `record.json` of each.
Invariant: what is written is what was measured; several processes measure together and one writes.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlrewrite.artifacts import Folder
from nlrewrite.coders import curve, form, record, replaced
from nlrewrite.coders.activity import Activity, Batch
from nlrewrite.coders.form import Coder
from nlrewrite.coders.ranks import Ranks
from nlrewrite.subject.sites import Located

if TYPE_CHECKING:
    from nlrewrite.coders.train import Learner

LIVE_TOKENS = 1 << 16
LIVE = 1e-4  # a latent is live when it is active on more than one token in ten thousand


@torch.no_grad()
def finish(
    learners: "Sequence[Learner]",
    active: Activity,
    held_out: Mapping[Located, Batch],
    means: Mapping[Located, Tensor],
    inputs: Mapping[str, Folder],
    ranks: Ranks,
) -> None:
    """Measure the coders and write them down; `means` are those of y, which ablation puts in its place."""
    with ExitStack() as answers:
        for learner in learners:
            answers.enter_context(learner.optimizer.answer())
        coders = [learner.learned.coder() for learner in learners]
        pairs = list(zip(learners, coders, strict=True))
        lives = live_shares(pairs, active, ranks)
        if ranks.rank:
            return
        ids_BT = torch.from_numpy(active.held_out()).to(active.device)
        costs = replaced.costs(active.model, [(each.located, coder) for each, coder in pairs], means, ids_BT)
        for (learner, coder), live, cost in zip(pairs, lives, costs, strict=True):
            summary = {
                "curve": learner.curve,
                "fvu": learner.curve[-1]["fvu"],
                "live_share": live,
                "site": learner.located.name,
                "tokens_seen": learner.spec.steps * learner.spec.batch,
                "ce": cost,
            }
            out = learner.job.out
            form.save(coder, out)
            (out / "training.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            found = measured(coder, *held_out[learner.located], ids_BT.shape[1])
            record.write(described(learner, coder, inputs).model_copy(update=found), out)


def live_shares(pairs: "Sequence[tuple[Learner, Coder]]", active: Activity, ranks: Ranks) -> list[float]:
    """Of each coder the share of its latents that are live on tokens of the order behind those of training."""
    order, spec = active.order, pairs[0][0].spec
    windows = order.opening(LIVE_TOKENS, after=spec.steps * spec.batch)
    own = windows[ranks.share(len(windows))]
    counts = [torch.zeros(coder.latents, dtype=torch.int64, device=active.device) for _, coder in pairs]
    for start in range(0, len(own), active.at_once):
        batches = active.windows(own[start : start + active.at_once])
        for total_L, (learner, coder) in zip(counts, pairs, strict=True):
            total_L += curve.fired(coder, batches[learner.located][0])
    return [float((ranks.total(each) > LIVE * len(windows) * order.length).double().mean()) for each in counts]


def measured(coder: Coder, x_ND: Tensor, y_NE: Tensor, window: int) -> dict[str, float]:
    """What the record says was measured: as of a coder from elsewhere, without the first position of every window."""
    inside_N = torch.arange(len(x_ND), device=x_ND.device) % window > 0
    x_ND, y_NE = x_ND[inside_N], y_NE[inside_N]
    l0 = float(curve.fired(coder, x_ND).sum()) / len(x_ND)
    return {"fvu": curve.fvu(coder, x_ND, y_NE), "l0": l0, "measured_on": len(x_ND)}


def described(learner: "Learner", coder: Coder, inputs: Mapping[str, Folder]) -> record.Record:
    """The record beside the coder."""
    subject = inputs["subject"].manifest
    data = inputs["stream"] if "stream" in inputs else inputs["tokens"]
    spec, name = learner.spec, learner.located.name
    return record.Record(
        kind=record.kind_of(coder, spec.site),
        format="nlrewrite",
        source="trained",
        site=spec.site,
        hook_in=f"{name}, {'input' if learner.located.reads_input else 'output'}",
        hook_out=f"{name}, output",
        model=subject.spec.get("model", str(subject.artifact)),
        revision=subject.spec.get("revision"),
        data=f"{spec.data.kind}, {data.manifest.artifact}",
        steps=spec.steps,
        tokens=spec.steps * spec.batch,
        width=spec.width,
        k=coder.k,
    )
