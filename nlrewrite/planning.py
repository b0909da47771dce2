"""Planning: what a run would do with every step, why, and how much work that is. Builds nothing, reads no numbers.

In: the spec of a rewriting, a store, the steps to refresh. Out: a `Plan`: a row per step, and counts of queries to the
simulator and of tokens. Invariant: a run that follows at once builds exactly the rows that are no hits.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Finding, Store
from nlrewrite.composition import rewrite
from nlrewrite.execution import Execution
from nlrewrite.pipeline import REFRESH, check_refresh, decide, drifted, labels
from nlrewrite.profiles import chosen
from nlrewrite.specs import RewriteSpec, SimulateSpec, Spec, TinySubject

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
    tokens: dict[str, int] = Field(description="Tokens that each kind of work reads.")
    at_most: bool = Field(description="The counts are upper bounds, for the tokens are not there to be counted.")
    needs: tuple[str, ...] = Field(description="Capabilities that a run takes and this version does not have.")

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


def plan(profile: str, spec: RewriteSpec, refresh: Collection[str], execution: Execution) -> Plan:
    """What a run would do with every step of `spec`, in order, and what it would cost."""
    store = Store(execution.store, execution.scratch)
    planner = Planner(store, check_refresh(refresh, labels(spec)))
    rewrite(spec, planner)
    start = chosen(profile)
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
        total = _queries(spec, planner, positions, ("hit", "missing", "stale", "damaged", "downstream", "refresh"))
        left = _queries(spec, planner, positions, ("missing", "stale", "damaged", "downstream", "refresh"))
        reads = {"train the coder": spec.coder.steps * spec.coder.batch, **positions}
        if isinstance(spec.subject, TinySubject):
            reads = {"train the subject": spec.subject.steps * spec.subject.batch * spec.subject.context, **reads}
    return Plan(
        profile=profile,
        rows=tuple(planner.rows),
        queries=total,
        queries_left=left,
        tokens={name: count for name, count in reads.items() if count},
        at_most=at_most,
        needs=start.needs,
    )


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
