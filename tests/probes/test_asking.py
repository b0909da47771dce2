"""How probes are asked for: on the command line, as settings, and what the composition then does."""

import json
from pathlib import Path

import pytest

from nlrewrite import cli, pipeline
from nlrewrite.profiles import Overrides, probing, settled
from nlrewrite.specs import PROBES


def asked(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> list[str]:
    code = cli.main(["plan", "--profile", "smoke", "--json", "--store", str(tmp_path / "store"), *arguments])
    assert code == 0
    return [row["step"] for row in json.loads(capsys.readouterr().out)["rows"] if row["step"] in PROBES]


def test_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert asked(capsys, tmp_path) == []
    assert asked(capsys, tmp_path, "--probes", "all") == [*PROBES]
    assert asked(capsys, tmp_path, "--probes", "sample-size, ladder") == ["sample-size", "ladder"]
    assert asked(capsys, tmp_path, "--set", 'probes=["requirement"]') == ["requirement"]


def test_a_wrong_name_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["study", "--local", "--profile", "smoke", "--probes", "stairs", "--store", str(tmp_path)]) == 2
    assert "'ladder', 'requirement' or 'sample-size', not 'stairs'" in capsys.readouterr().err


def test_probes_stand_between_the_evaluation_and_the_report() -> None:
    labels = list(pipeline.labels(settled("smoke", probing(Overrides(), PROBES))))
    assert labels[-5:] == ["evaluation", *PROBES, "report"]


def test_a_study_without_gates_has_a_ladder_without_gates() -> None:
    overrides = probing(Overrides(settings=("rungs=false",)), ["ladder"])
    assert "gates" not in pipeline.labels(settled("smoke", overrides))
