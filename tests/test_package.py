"""The wheel: it builds, holds the library and nothing else, and works from outside the checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel, and everything else but the checkout from this one."""
    venv = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # A folder named in a .pth file is searched, but its own .pth files, the checkout's among them, are not read.
    Path(asked.stdout.strip(), "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NLREWRITE"))}
    return subprocess.run([str(python), *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_holds_the_library_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"nlrewrite", f"nlrewrite-{wheel.name.split('-')[1]}.dist-info"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nlrewrite").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nlrewrite").rglob("*.yaml")}
    assert templates and templates == {name for name in names if name.endswith(".yaml")}


def test_is_what_is_imported_outside_of_the_checkout(elsewhere: Path, tmp_path: Path) -> None:
    done = run(elsewhere, tmp_path, "-c", "import nlrewrite; print(nlrewrite.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(elsewhere.parents[1])
    missing = run(elsewhere, tmp_path, "-c", "import flows")
    assert "No module named 'flows'" in missing.stderr


def test_helps_and_plans_outside_of_the_checkout(elsewhere: Path, tmp_path: Path) -> None:
    done = run(elsewhere, tmp_path, "-m", "nlrewrite", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "examples:" in done.stdout
    done = run(elsewhere, tmp_path, "-m", "nlrewrite", "plan", "--profile", "pythia-160m-transcoder")
    assert done.returncode == 0, done.stderr
    assert "327,680,000" in done.stdout
    script = subprocess.run([str(elsewhere.with_name("nlrewrite")), "--help"], capture_output=True, cwd=tmp_path)
    assert script.returncode == 0


def test_says_where_the_flows_are(elsewhere: Path, tmp_path: Path) -> None:
    done = run(elsewhere, tmp_path, "-m", "nlrewrite", "run", "--profile", "smoke")
    assert done.returncode == 2
    assert "checkout" in done.stderr
    assert "nlrewrite run --local" in done.stderr


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_constraints_keep_to_the_ranges_and_leave_torch_open(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    if name == "gpu":
        wanted += project["optional-dependencies"]["vllm"]
    text = (ROOT / "constraints" / f"{name}.txt").read_text()
    pins = dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;]+)", text))
    pins = {canonicalize_name(each): version for each, version in pins.items()}
    assert {"torch", "torchvision", "torchaudio"}.isdisjoint(pins)
    for each in map(Requirement, wanted):
        if each.name != "torch":
            assert pins[canonicalize_name(each.name)] in each.specifier, str(each)
