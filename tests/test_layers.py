"""The arrow of knowledge: deployments know flows, flows know tasks, tasks know nlrewrite, and never the other way."""

import ast
import importlib.metadata
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nlrewrite

ROOT = Path(__file__).parents[1]
ABOVE = {"prefect", "flows", "tasks", "tests", "deployments", "benchmarks"}
HEAVY = {"torch", "transformers", "tokenizers", "datasets", "pyarrow", "pandas", "matplotlib", "scipy", "s3fs", "vllm"}


def loaded_by(*modules: str) -> set[str]:
    """The top-level names that a fresh interpreter has loaded once it imported `modules`."""
    code = (
        "import importlib, json, sys\n"
        f"for module in {list(modules)!r}: importlib.import_module(module)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def modules() -> list[str]:
    found = [each.name for each in pkgutil.walk_packages(nlrewrite.__path__, "nlrewrite.")]
    return [each for each in found if each != "nlrewrite.__main__"]


def test_no_module_loads_what_stands_above_it() -> None:
    assert len(modules()) > 20
    assert loaded_by(*modules()) & ABOVE == set()


@pytest.mark.parametrize("path", sorted(ROOT.glob("nlrewrite/**/*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_imports_what_stands_above_it(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by a relative name"
            found.add((node.module or "").partition(".")[0])
    assert found & ABOVE == set()


def test_every_folder_of_the_library_is_a_package() -> None:
    folders = {path.parent for path in ROOT.glob("nlrewrite/**/*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("module", ["nlrewrite.cli", "nlrewrite.artifacts", "nlrewrite.steps", "nlrewrite.profiles"])
def test_what_starts_at_once_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(module) & HEAVY == set()


def test_flows_have_names_of_their_own() -> None:
    """Prefect loads a flow's file as a module named after its stem, which would hide one of the same name."""
    stems = {path.stem for path in (ROOT / "flows").glob("*.py")} - {"__init__"}
    taken = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions()) | {"nlrewrite", "tasks"}
    assert stems & taken == set()


@pytest.mark.parametrize("package", ["flows", "tasks"])
def test_ours_are_found_before_what_is_installed(package: str) -> None:
    code = f"import {package}; print({package}.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == str(ROOT / package / "__init__.py"), done.stderr
