"""Tasks and the table of steps agree: one task a kind, named after it, taking what the composition gives it."""

import inspect
import subprocess
import sys
from pathlib import Path

from nlrewrite.artifacts import Artifact
from nlrewrite.composition import rewrite
from nlrewrite.specs import RewriteSpec, Spec
from nlrewrite.steps import STEPS, name
from tasks import TASKS

ROOT = Path(__file__).parents[2]


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

    rewrite(RewriteSpec(), check)
    assert wrong == []


def test_prefects_own_cache_is_never_asked() -> None:
    from prefect.cache_policies import NO_CACHE

    assert {(task.cache_policy == NO_CACHE, task.persist_result) for task in TASKS.values()} == {(True, False)}


def test_the_library_never_imports_prefect_or_what_is_above_it() -> None:
    code = """
import importlib, pkgutil, sys, nlrewrite
for each in pkgutil.walk_packages(nlrewrite.__path__, "nlrewrite."):
    if not each.name.endswith("__main__"):
        importlib.import_module(each.name)
print(*[name for name in ("prefect", "flows", "tasks") if name in sys.modules])
"""
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert asked.stdout.split() == []
