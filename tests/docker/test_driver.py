"""The driver's Dockerfile, read line by line: there need not be a container engine where the tests run."""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    text = (ROOT / "docker" / "driver.Dockerfile").read_text()
    lines = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ").splitlines()
    found: list[list[tuple[str, str]]] = []
    for line in filter(str.strip, lines):
        instruction, _, rest = line.partition(" ")
        assert instruction in INSTRUCTIONS, line
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, " ".join(rest.split())))
    return found


def test_every_stage_starts_from_the_same_pinned_image(stages: list[list[tuple[str, str]]]) -> None:
    images = {stage[0][1].partition(" ")[0] for stage in stages}
    assert len(stages) == 2
    assert len(images) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", images.pop())


def test_runs_as_a_user_of_its_own_from_the_folder_of_the_flows(stages: list[list[tuple[str, str]]]) -> None:
    last = stages[-1]
    names = [name for name, _ in last]
    user = names.index("USER")
    assert dict(last)["USER"] not in ("root", "0")
    assert dict(last)["WORKDIR"] == "/opt/nlrewrite"
    assert "COPY" not in names[user:], "what is copied after USER"
    assert [name for name, rest in last[user:] if "pip" in rest] == []
    assert names[-1] == "CMD"


def test_is_tried_when_it_is_built(stages: list[list[tuple[str, str]]]) -> None:
    last = stages[-1]
    after_user = [rest for name, rest in last[[name for name, _ in last].index("USER") :] if name == "RUN"]
    assert any("prefect version" in rest and "import flows.rewrite" in rest for rest in after_user)


def test_torch_is_the_cpu_build_that_the_makefile_names(stages: list[list[tuple[str, str]]]) -> None:
    (version,) = re.findall(r"(?m)^TORCH := (.*)$", (ROOT / "Makefile").read_text())
    (index,) = re.findall(r"(?m)^TORCH_CPU_INDEX := (.*)$", (ROOT / "Makefile").read_text())
    runs = [rest for name, rest in stages[0] if name == "RUN"]
    assert any(f"--index-url {index} torch=={version}" in rest for rest in runs)
    assert any("-c constraints/cpu.txt" in rest for rest in runs)


def test_what_is_copied_exists_and_is_let_through(stages: list[list[tuple[str, str]]]) -> None:
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name, rest in (each for stage in stages for each in stage):
        if name == "COPY" and "--from" not in rest:
            *sources, _ = [word for word in shlex.split(rest) if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), source
                assert any(fnmatch(source, pattern) for pattern in let_through), source
