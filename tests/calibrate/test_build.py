"""The calibration of a small rewriting, for real: every default calibrator and those that may not be chosen."""

import json
from pathlib import Path

import numpy as np
import pytest

from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.calibrate import apply
from nlrewrite.calibrate.fit import build, read_calibrated
from nlrewrite.composition import rewrite
from nlrewrite.execution import Execution
from nlrewrite.profiles import PROFILES
from nlrewrite.progress import Progress
from nlrewrite.simulate import rules
from nlrewrite.simulate.said import Spoken
from nlrewrite.specs import CalibrateSpec, RewriteSpec, TextFolder
from nlrewrite.text import sources
from tests.text.conftest import made_up

CALIBRATORS = (
    *CalibrateSpec().calibrators,
    "mean",
    "quantile-1-on-prompt",
    "levels+refit",
    "hurdle@centred+output-gain",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """What a calibration is made from, and itself."""
    folder, store = tmp_path_factory.mktemp("texts"), Store(str(tmp_path_factory.mktemp("store")))
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(made_up(number), encoding="utf-8")
    execution = Execution(text_folder=str(folder))
    fields = {
        **PROFILES["smoke"].fields,
        "subject": {**PROFILES["smoke"].fields["subject"], "kind": "tiny"},
        "coder": {**PROFILES["smoke"].fields["coder"], "kind": "trained"},
        "text": {"source": sources.identified(TextFolder(), execution)},
        "calibrate": {"calibrators": CALIBRATORS, "folds": 2},
    }
    folders: dict[str, Folder] = {}

    def step(label: str, kind: str, spec, **inputs: Artifact) -> Artifact:
        artifact = steps.name(kind, spec, inputs)
        needed = {
            "corpus",
            "tokens",
            "subject",
            "coder",
            "explanations",
            "activations-explain",
            "activations-calibrate",
        }
        if label in {*needed, "simulation-calibrate", "calibration"}:
            found = store.find(artifact)
            if found.manifest is None:
                steps.build(artifact, spec, inputs, store, execution, Progress(), "test", found)
        if label == "calibration":
            folders.update({name: store.folder(each) for name, each in {**inputs, "calibration": artifact}.items()})
        return artifact

    rewrite(RewriteSpec.model_validate(fields), step)
    return folders


def test_every_calibrator_is_there_with_what_it_used_and_its_error(made: dict[str, Folder]) -> None:
    fitted, chosen = read_calibrated(made["calibration"])
    about = json.loads(made["calibration"].path("calibration.json").read_text())
    assert tuple(fitted) == CALIBRATORS
    rows = {row["calibrator"]: row for row in about["calibrators"]}
    assert rows["mean"]["cross_fitted_error"] == about["mean_ablation_error"]
    assert rows["quantile-1-on-prompt"]["cross_fitted_error"] is None
    errors = {
        name: row["cross_fitted_error"] for name, row in rows.items() if "prompt" not in name and "refit" not in name
    }
    assert errors[chosen] == min(errors.values()) <= about["mean_ablation_error"]
    assert {name: row["information"] for name, row in rows.items()} == {
        name: each.information for name, each in fitted.items()
    }
    spoken = Spoken(rules.read(made["simulation"]), int(rules.read(made["simulation"]).position.max()) + 1)
    silent = ~spoken.explained
    assert about["unexplained"] == silent.sum()
    for each in fitted.values():
        assert (each.gain[silent] == 0).all()
        values = apply.values(each, spoken).dense(np.arange(5))
        assert np.isfinite(values).all()
        assert values[:, silent] == pytest.approx(np.tile(fitted["mean"].mean[silent], (5, 1)))
    assert fitted["levels+refit"].decoder_LE is not None
    assert rows["levels+refit"]["notes"]["refit"]["gamma"] > 0
    assert 0 <= rows["hurdle@centred+output-gain"]["notes"]["output_gain"] <= 1


def test_two_calibrations_have_the_same_bytes(made: dict[str, Folder], tmp_path: Path) -> None:
    first = made["calibration"]
    inputs = {name: folder for name, folder in made.items() if name != "calibration"}
    build(CalibrateSpec.model_validate(first.manifest.spec), inputs, tmp_path, steps.Running(Execution(), Progress()))
    for entry in first.manifest.files:
        assert (tmp_path / entry.path).read_bytes() == first.path(entry.path).read_bytes(), entry.path


def test_there_must_be_one_to_choose() -> None:
    with pytest.raises(ValueError, match="needs one that may be chosen"):
        CalibrateSpec(calibrators=("quantile-6-on-prompt", "hurdle+refit"))
