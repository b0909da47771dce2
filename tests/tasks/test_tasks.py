"""Tasks and the table of steps agree: one task a kind, named after it, taking what the composition gives it."""

import inspect

from nlrewrite.artifacts import Artifact
from nlrewrite.composition import WALKS, one_by_one, rewrite
from nlrewrite.profiles import Overrides, settled
from nlrewrite.specs import PROBES, RewriteSpec, Spec
from nlrewrite.steps import STEPS, name
from tasks import TASKS


def test_one_task_for_every_kind() -> None:
    assert set(TASKS) == set(STEPS)
    assert all(task.description for task in TASKS.values())


def test_tasks_take_what_the_composition_gives_them() -> None:
    wrong = []

    def check(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        try:
            inspect.signature(TASKS[kind].fn).bind(spec=spec, work=None, **inputs)
        except TypeError as error:
            wrong.append((label, str(error)))
        return name(kind, spec, inputs)

    rewrite(RewriteSpec(probes=PROBES), check)
    streamed = settled("smoke", Overrides(settings=("coder.data.kind=rows",)))
    for walk in ("train-coder", "sweep", "replace"):
        WALKS[walk](streamed, check, one_by_one(check))
    rewrite(settled("smoke-reader", Overrides(settings=("tune.steps=3",))), check)
    assert wrong == []


def test_prefects_own_cache_is_never_asked() -> None:
    from prefect.cache_policies import NO_CACHE

    assert {(task.cache_policy == NO_CACHE, task.persist_result) for task in TASKS.values()} == {(True, False)}
