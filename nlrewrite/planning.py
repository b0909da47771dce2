"""Planning: what a run would do with every step, why, and how much work that is. Builds nothing, reads no numbers.

In: the spec of a rewriting, a store, the steps to refresh, prices. Out: a `Plan`: a row per step, counts of queries to
the simulator and of tokens, and what questions to a language model cost. Invariant: a run that follows at once builds
exactly the rows that are no hits.
"""

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nlrewrite import costs, steps
from nlrewrite.artifacts import Artifact, Finding, Store
from nlrewrite.composition import rewrite
from nlrewrite.costs import Cost, Questions
from nlrewrite.execution import Execution
from nlrewrite.llm import rates, shape
from nlrewrite.llm.rates import Lengths, Measured, Prices
from nlrewrite.pipeline import REFRESH, check_refresh, decide, drifted, labels
from nlrewrite.profiles import chosen
from nlrewrite.published import Published
from nlrewrite.questions import Order
from nlrewrite.specs import AskSpec, CoderSpec, RewriteSpec, RuleReader, SimulateSpec, Spec, Split, TinySubject

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PlanState = Literal["hit", "missing", "stale", "damaged", "downstream", "refresh"]


class PlanRow(BaseModel):
    """What a run would do with one step, and why."""

    model_config = ConfigDict(frozen=True)

    step: str
    artifact: Artifact
    state: PlanState
    why: str
    drift: bool = Field(description="The step's sources were edited since the artifact was built.")
    bytes: int | None = Field(description="Size of the artifact that is there.")
    made: str = Field(description="When that was built.")


class Plan(BaseModel):
    """What a run would do, and how much of it."""

    model_config = ConfigDict(frozen=True)

    profile: str
    rows: tuple[PlanRow, ...]
    queries: int | None = Field(description="Questions to the simulator; none while their number cannot be known.")
    queries_left: int | None = Field(description="Those of them that a run would have to ask.")
    questions: int | None = Field(
        default=None,
        description="Questions of the whole run to a language model, answered ones too, at most; none if it is asked "
        "nothing, or while their number cannot be known.",
    )
    tokens: dict[str, int] = Field(description="Tokens that each kind of work reads.")
    at_most: bool = Field(description="The counts are upper bounds, for the tokens are not there to be counted.")
    needs: tuple[str, ...] = Field(description="Capabilities that a run takes and this version does not have.")
    costs: tuple[Cost, ...] = Field(
        default=(), description="What asking a language model takes, by engine; empty where none is asked."
    )
    assumed: str = Field(default="", description="What the computed costs take for granted.")

    @property
    def whole(self) -> int | None:
        """Questions of the whole run to whoever reads: a language model, or the rules."""
        return self.queries if self.questions is None else self.questions

    def printable(self) -> dict[str, Any]:
        """The plan as JSON, with artifacts by name."""
        rows = [{**row.model_dump(), "artifact": str(row.artifact)} for row in self.rows]
        return {**self.model_dump(mode="json"), "rows": rows}


class Planner:
    """A step runner that only names artifacts. `rows` says what a run would find and do, `specs` of what."""

    def __init__(self, store: Store, refresh: Collection[str] = ()) -> None:
        self.store = store
        self.refresh = refresh
        self.rows: list[PlanRow] = []
        self.specs: dict[str, Spec] = {}
        self._states: dict[Artifact, PlanState] = {}

    def __call__(self, label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        artifact, finding = decide(self.store, label, kind, spec, inputs, self.refresh)
        if artifact in self._states:
            state, why = "hit", "the same artifact as a step before it"
        else:
            state, why = self._verdict(artifact, finding, spec, inputs)
            self._states[artifact] = state
        manifest = finding.manifest
        self.rows.append(
            PlanRow(
                step=label,
                artifact=artifact,
                state=state,
                why=why,
                drift=manifest is not None and drifted(manifest),
                bytes=manifest.bytes if manifest else None,
                made=manifest.made.time if manifest else "",
            )
        )
        self.specs[label] = spec
        return artifact

    def _verdict(
        self, artifact: Artifact, finding: Finding, spec: Spec, inputs: Mapping[str, Artifact]
    ) -> tuple[PlanState, str]:
        waiting = [name for name, each in inputs.items() if self._states[each] != "hit"]
        if finding.why == REFRESH:
            return "refresh", finding.why
        if finding.state == "missing":
            reasons = self._difference(artifact, spec, None if waiting else inputs)
            return "missing", "; ".join([*(f"its input {name} will be built" for name in waiting[:1]), *reasons])
        if waiting and finding.state != "damaged":
            return "downstream", f"its input {waiting[0]} will be rebuilt"
        return finding.state, finding.why

    def _difference(self, artifact: Artifact, spec: Spec, inputs: Mapping[str, Artifact] | None) -> list[str]:
        """What differs from the most similar artifact there is; of the inputs only where they are settled."""
        near = self.store.nearest(artifact, spec, inputs, steps.STEPS[artifact.kind].version)
        if near is None:
            return ["not in the store"] if inputs is not None else []
        if not near.differences:
            return []
        shown = "; ".join(near.differences[:3]) + (" ..." if len(near.differences) > 3 else "")
        return [f"nearest {artifact.kind}/{near.manifest.artifact.digest[:4]} differs in {shown}"]


ORDERS: tuple[Order, ...] = ("context", "explanation")
NO_HOURS: dict[str, Any] = {"hours": {}}
TO_BUILD: tuple[PlanState, ...] = ("missing", "stale", "damaged", "downstream", "refresh")


def plan(
    profile: str, spec: RewriteSpec, refresh: Collection[str], execution: Execution, prices: Prices | None = None
) -> Plan:
    """What a run would do with every step of `spec`, in order, and what it would cost."""
    planner = planned(spec, refresh, execution)
    store, start = planner.store, chosen(profile)
    asking = Asking(spec, execution, planner, start.published)
    published = start.published
    if published is not None:
        reads = {
            "train the coder": published.training_tokens * published.coders,
            "collect activations": published.activation_tokens,
            "evaluate": published.evaluation_tokens,
        }
        total = left = published.queries(spec.coder.width)
        at_most = False
    else:
        positions, at_most = _positions(spec, store, planner)
        total = _queries(spec, planner, positions, ("hit", *TO_BUILD))
        left = _queries(spec, planner, positions, TO_BUILD)
        trained = spec.coder.steps * spec.coder.batch if isinstance(spec.coder, CoderSpec) else 0
        reads = {"train the coder": trained, **positions}
        if isinstance(spec.subject, TinySubject):
            reads = {"train the subject": spec.subject.steps * spec.subject.batch * spec.subject.context, **reads}
    return Plan(
        profile=profile,
        rows=tuple(planner.rows),
        queries=total,
        queries_left=left,
        questions=asking.whole,
        tokens={name: count for name, count in reads.items() if count},
        at_most=at_most,
        needs=start.needs,
        costs=asking.costs(prices or Prices()),
        assumed=asking.assumed,
    )


def planned(spec: RewriteSpec, refresh: Collection[str], execution: Execution) -> Planner:
    """A planner that has gone through every step of `spec`."""
    planner = Planner(Store(execution.store, execution.scratch), check_refresh(refresh, labels(spec)))
    rewrite(spec, planner)
    return planner


def _positions(spec: RewriteSpec, store: Store, planner: Planner) -> tuple[dict[str, int], bool]:
    """Positions in the windows of each split, and whether that is only a bound."""
    row = next(row for row in planner.rows if row.step == "tokens")
    if row.state == "hit":
        counts = json.loads(store.folder(row.artifact).path("tokens.json").read_bytes())["splits"]
        return {split: counts[split]["tokens"] for split in ("explain", "calibrate", "report")}, False
    limits = {split: limit for split, limit in spec.tokens.limits.items() if split != "train"}
    return {split: limit * spec.tokens.window for split, limit in limits.items()}, True


def _queries(
    spec: RewriteSpec, planner: Planner, positions: Mapping[str, int], states: Collection[PlanState]
) -> int | None:
    """One question for each latent and position of the simulations that are in one of `states`."""
    simulated = [planner.specs[row.step] for row in planner.rows if row.state in states]
    splits = [each.split for each in simulated if isinstance(each, SimulateSpec)]
    if any(split not in positions for split in splits):
        return None
    return sum(positions[split] for split in splits) * spec.coder.width


# -- questions to a language model -------------------------------------------------------------------------------------


class Asking:
    """What a language model would be asked, and what is known of that before it is."""

    def __init__(
        self, spec: RewriteSpec, execution: Execution, planner: Planner, published: Published | None = None
    ) -> None:
        self.spec, self._planner = spec, planner
        self.by_model = not isinstance(spec.reader, RuleReader)
        self.published = published if published is not None and published.contexts else None
        if self.published is not None and not self.by_model:
            self.model, self.name = shape.KNOWN.get(self.published.simulator), self.published.simulator
        else:
            vocabulary = spec.subject.vocabulary if isinstance(spec.subject, TinySubject) else 50_000
            self.model = shape.shape(spec.reader, execution.reader_folder, vocabulary)
            self.name = rates.named(spec.reader)
        self.asks = self.by_model or self.published is not None

    @cached_property
    def measured(self) -> tuple[Measured, ...]:
        """What answers of the same model took, by engine and device."""
        return tuple(each for each in rates.read(self._planner.store) if each.model == self.name)

    @cached_property
    def lengths(self) -> Lengths:
        return costs.lengths(self.spec.ask.prompt, self.spec.ask.window, self.words)

    @cached_property
    def sentences(self) -> "tuple[int, float] | None":
        """Latents with a sentence, and its mean number of words; none before they are written."""
        found = self.table("explanations", "explanations.parquet")
        if found is None:
            return None
        words = found["sentence"].str.split().str.len()
        return int((words > 0).sum()), float(words[words > 0].mean()) if (words > 0).any() else 0.0

    @property
    def words(self) -> float | None:
        return None if self.sentences is None else self.sentences[1]

    @property
    def latents(self) -> int:
        """That are asked about; at most, before there are sentences."""
        return self.spec.coder.width if self.sentences is None else self.sentences[0]

    @cached_property
    def passed(self) -> tuple[float, float] | None:
        """Share of the positions that gates let through, and of the activations; none before there are gates."""
        found = self.table("gates", "gates.parquet")
        if found is None:
            return None
        there = found["tokens"].to_numpy() > 0
        passed, kept = (found[name].to_numpy()[there] for name in ("passed", "kept"))
        return (float(passed.mean()), float(kept.mean())) if there.any() else None

    def windows(self, split: Split) -> int | None:
        """Prompts of a split; at most, before the text is cut."""
        row = self.row("tokens")
        if row is not None and row.state == "hit":
            counts = json.loads(self._planner.store.folder(row.artifact).path("tokens.json").read_bytes())
            return counts["splits"][split]["windows"]
        bound = self.spec.tokens.limits.get(split)
        return self.published.contexts if bound is None and self.published is not None else bound

    @property
    def questions(self) -> list[Questions] | None:
        """Of every step that a run would ask in; none where their number cannot be known."""
        return self._in(TO_BUILD)

    @property
    def whole(self) -> int | None:
        """Questions of all steps, of those that are built too; none where no model is asked, or it cannot be known."""
        found = self._in(("hit", *TO_BUILD)) if self.by_model else None
        return None if found is None else round(sum(each.count for each in found))

    def _in(self, states: Collection[PlanState]) -> list[Questions] | None:
        specs = [self._planner.specs[row.step] for row in self._planner.rows if row.state in states]
        found = [self.of(each) for each in specs if isinstance(each, AskSpec)]
        return None if None in found else [each for each in found if each is not None]

    @property
    def arms(self) -> int:
        """How many times the report split is asked about: the sentences, the same shuffled, other lengths."""
        specs = (self._planner.specs[row.step] for row in self._planner.rows)
        return max(sum(isinstance(each, AskSpec) and each.split == "report" for each in specs), 1)

    def of(self, asked: AskSpec) -> Questions | None:
        contexts = self.windows(asked.split)
        if asked.contexts == "cases":
            row = self.row("tokens")
            if contexts is not None and row is not None and row.state == "hit":
                contexts *= self.spec.tokens.window
            each = float(asked.active + asked.inactive)
            contexts = contexts or round(each * self.latents)
        elif contexts is None:
            return None
        else:
            each = float(contexts)
        if asked.gate and self.passed is not None:
            each = (
                asked.active + self.passed[0] * asked.inactive if asked.contexts == "cases" else each * self.passed[0]
            )
        if asked.screen != "none":  # how many it will drop is not known: what is asked is this, at most, and its pilot
            each += asked.screen_contexts
        return Questions(each * self.latents, self.latents, contexts)

    def costs(self, prices: Prices) -> tuple[Cost, ...]:
        """Of the published protocol, either way round, and of what a run would ask."""
        found: tuple[Cost, ...] = ()
        if self.published is not None:
            latents, contexts = self.spec.coder.width, self.published.contexts
            asked = [Questions(self.published.queries(latents), latents, contexts)]
            quoted = self.published if latents == self.published.latents else self.published.model_copy(update=NO_HOURS)
            found += costs.rows(asked, self.model, self.lengths, ORDERS, prices, self.measured, quoted)
        if self.by_model and self.questions is not None:
            order = (self.spec.ask.order,)
            found += costs.rows(self.questions, self.model, self.lengths, order, prices, self.measured)
        return found

    @property
    def assumed(self) -> str:
        if not self.asks:
            return "none, the rules cost nothing"
        if self.by_model and self.questions is None:
            return "known once the tokens step is built"
        if self.published is None and not sum(each.count for each in self.questions or ()):
            return "all are answered"
        bound = self.sentences is None or self.spec.ask.screen != "none"
        return costs.assumptions(self.model, self.lengths, bound)

    def row(self, label: str) -> PlanRow | None:
        return next((row for row in self._planner.rows if row.step == label), None)

    @property
    def decoder(self) -> "np.ndarray | None":
        """Squared norms of the decoder's directions [L]; none before there is a coder."""
        row = self.row("coder")
        if row is None or row.state != "hit":
            return None
        from nlrewrite.coders import form

        return form.read(self._planner.store.folder(row.artifact)).dec_LE.square().sum(1).numpy()

    def table(self, label: str, name: str) -> "pd.DataFrame | None":
        """A table of a step that is built."""
        row = self.row(label)
        if row is None or row.state != "hit":
            return None
        import pandas as pd

        return pd.read_parquet(self._planner.store.folder(row.artifact).path(name))
