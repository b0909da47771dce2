"""Train sparse coders on the subject's activations: any number of them on one pass of the subject.

In: the subject and a token stream. Out: for each coder its weights, the curve of its training and what it costs the
subject. Invariant: each coder is, bit for bit, what training it alone gives, and a run that was killed and goes on
gives what an unbroken run gives; the order of the data is a function of the step, and saving changes nothing.
"""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nlrewrite.artifacts import Folder
from nlrewrite.coders import activity, order
from nlrewrite.coders.activity import Activity, Batch
from nlrewrite.coders.curve import Meter, fvu
from nlrewrite.coders.finish import finish
from nlrewrite.coders.followers import called
from nlrewrite.coders.learned import Learned
from nlrewrite.coders.optimizers import Adam, Signum, rate
from nlrewrite.coders.products import fast_products
from nlrewrite.coders.ranks import Ranks, joined, own_device
from nlrewrite.coders.saved import Saved, Slots, kept
from nlrewrite.coders.sharded import Sharded, optimizer_of
from nlrewrite.errors import SettingError
from nlrewrite.specs import CoderSpec
from nlrewrite.steps import Job
from nlrewrite.subject import sites
from nlrewrite.subject.sites import Located
from nlrewrite.text.rows import rows

if TYPE_CHECKING:
    from nlrewrite.execution import Execution
    from nlrewrite.steps import Running

log = logging.getLogger(__name__)

OPENING_TOKENS = 1 << 13  # at least so many tokens tell a coder where to start
POINT_EVERY = 50  # steps from one point of the curve to the next
POINTS, POINT_AFTER = 40, 12
"""So many points at least, unless steps between them were fewer than so many: each is a pass over what is held out."""
SHARED = ("data", "order", "order_seed", "window", "mix", "batch", "steps", "precision")
"""What coders must have in common to be trained on one pass."""


def build(spec: CoderSpec, inputs: Mapping[str, Folder], out: Path, running: "Running") -> None:
    build_together([Job(spec, out, running.work)], inputs, running)


def build_together(jobs: Sequence[Job], inputs: Mapping[str, Folder], running: "Running") -> None:
    """Train coders on as few passes of the subject as their settings allow."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(shared(_spec(job)), []).append(job)
    specs = [_spec(job) for job in jobs]
    with called(specs, inputs), fast_products(running.execution.fast_products, running.execution.device):
        for together in groups.values():
            train(together, inputs, running, joined())


def shared(spec: CoderSpec) -> str:
    """Coders with the same of this are trained on one pass."""
    seed = spec.seed if spec.order_seed is None else spec.order_seed
    return json.dumps(spec.model_copy(update={"order_seed": seed}).model_dump(include=set(SHARED)))


@dataclass
class Learner:
    """One coder in training, between two steps."""

    job: Job
    located: Located
    learned: Learned
    optimizer: Adam | Signum | Sharded
    meter: Meter
    slots: Slots | None
    step: int = 0
    """The next one to do."""
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def spec(self) -> CoderSpec:
        return _spec(self.job)

    def learn(self, x_ND: Tensor, y_NE: Tensor, ranks: Ranks) -> None:
        parameters = self.learned.parameters()
        for parameter in parameters:
            parameter.grad = None
        loss = self.learned.loss(x_ND, y_NE, self.step, ranks)
        loss.total.backward()
        ranks.sum_gradients(parameters)
        self.learned.project()
        self.optimizer.step(rate(self.spec, self.step))
        self.learned.settle()
        self.meter.add(loss)
        self.step += 1

    def point(self, x_ND: Tensor, y_NE: Tensor) -> None:
        """A point of the curve, of the step that was just done; the one moment at which the device is waited for."""
        with self.optimizer.answer():
            unexplained = fvu(self.learned.coder(), x_ND, y_NE)
        if not math.isfinite(unexplained):
            raise SettingError(
                f"training came apart: at step {self.step - 1} the unexplained variance is {unexplained}, with a "
                f"learning rate of {self.spec.rate:g}. Lower --set coder.learning_rate"
            )
        self.curve.append(
            {
                "step": self.step - 1,
                "tokens": self.step * self.spec.batch,
                "fvu": unexplained,
                **self.meter.read(),
                "dead_share": float(self.learned.silent(self.step * self.spec.batch).double().mean()),
                "learning_rate": rate(self.spec, self.step - 1),
            }
        )

    def save(self) -> None:
        if self.slots is None and not isinstance(self.optimizer, Sharded):
            return
        tensors = {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state().items()}
        if self.slots is not None:
            tensors |= {f"learned.{name}": tensor for name, tensor in self.learned.state().items()}
            self.slots.save(Saved(self.step, tensors | {"meter": self.meter.sums}, self.curve))

    def restore(self, saved: Saved) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): each for name, each in saved.tensors.items() if name.startswith(prefix)}

        self.learned.restore(under("learned."))
        self.optimizer.restore(under("optimizer."))
        self.meter.sums.copy_(saved.tensors["meter"])
        self.step, self.curve = saved.step, list(saved.curve)


def train(jobs: Sequence[Job], inputs: Mapping[str, Folder], running: "Running", ranks: Ranks) -> None:
    """Train coders that share `SHARED` on one pass of the subject."""
    execution, spec = running.execution, _spec(jobs[0])
    read = rows(inputs["stream"] if "stream" in inputs else inputs["tokens"], execution, spec.window)
    ordered = order.order(spec, read)
    model = activity.subject(inputs["subject"], spec, execution, own_device(execution.device), ordered.length)
    located = [sites.locate(model, _spec(job).site) for job in jobs]
    active = Activity(model, located, read, ordered, execution.batch_tokens, ranks)
    opening = active.windows(active.order.opening(max(OPENING_TOKENS, spec.batch)))
    held_out = active.of(active.held_out())
    learners = [
        _learner(job, where, opening[where], execution, ranks) for job, where in zip(jobs, located, strict=True)
    ]
    means = {where: y_NE.float().mean(0) for where, (_, y_NE) in opening.items()}
    del opening

    with running.progress.stage("train the coder", spec.steps) as advance:
        began = min(learner.step for learner in learners)
        advance(began, "kept from before" if began else "")
        started = saved = time.monotonic()
        for step in range(began, spec.steps):
            batches = active.batch(step)
            learning = [learner for learner in learners if learner.step == step]  # the others were saved later
            for learner in learning:
                learner.learn(*batches[learner.located], ranks)
            last = step == spec.steps - 1
            if step % point_every(spec) == 0 or last:
                for learner in learning:
                    learner.point(*held_out[learner.located])
                advance(0, note(learners, (step + 1 - began) * spec.batch / (time.monotonic() - started)))
            due = last or time.monotonic() - saved >= execution.save_seconds
            if any(isinstance(learner.optimizer, Sharded) for learner in learners):
                due = ranks.told(due)  # all have a part in it
            if due:
                for learner in learning:
                    learner.save()
                saved = time.monotonic()
            advance(1)
    finish(learners, active, held_out, means, inputs, ranks)


def point_every(spec: CoderSpec) -> int:
    """Steps from one point of the curve to the next."""
    return min(POINT_EVERY, max(POINT_AFTER, spec.steps // POINTS))


def note(learners: Sequence[Learner], tokens_a_second: float) -> str:
    """What the latest points of the curves say, in a few words."""
    points = [learner.curve[-1] for learner in learners if learner.curve]

    def spelled(name: str, form: str) -> str:
        lowest, highest = (format(pick(point[name] for point in points), form) for pick in (min, max))
        return lowest if lowest == highest else f"{lowest} to {highest}"

    return (
        f"FVU {spelled('fvu', '.3f')}, L0 {spelled('l0', '.1f')}, {spelled('dead_share', '.0%')} dead, "
        f"{tokens_a_second:,.0f} tokens/s"
    )


# -- within -----------------------------------------------------------------------------------------------------------


def _spec(job: Job) -> CoderSpec:
    assert isinstance(job.spec, CoderSpec)
    return job.spec


def _learner(job: Job, located: Located, opening: Batch, execution: "Execution", ranks: Ranks) -> Learner:
    """A coder at its start, or where it was saved."""
    spec = _spec(job)
    if spec.auxk and spec.dead_after > (before_last := (spec.steps - 1) * spec.batch):
        log.warning(
            "AuxK never acts: latents are dead after %d tokens, and there are %d before the last step. "
            "Lower --set coder.dead_after",
            spec.dead_after,
            before_last,
        )
    learned = Learned.initial(spec, *opening)
    ranks.broadcast(learned.parameters())  # another processor may round another way
    slots = None if job.work is None or ranks.rank else Slots(job.work, spec, execution, ranks.world)
    learner = Learner(
        job=job,
        located=located,
        learned=learned,
        optimizer=optimizer_of(spec, learned.parameters(), learned.settle, ranks),
        meter=Meter(opening[0].device),
        slots=slots,
    )
    saved = kept(slots, ranks)
    if saved is not None:
        learner.restore(saved)
        log.info("training of a coder goes on at step %d of %d", saved.step, spec.steps)
    return learner
