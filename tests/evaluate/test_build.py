"""Every stage once, for real, on made-up text: what the evaluation's files say of one another."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.calibrate.fit import read_calibrated
from nlrewrite.coders import topk
from nlrewrite.composition import rewrite
from nlrewrite.evaluate import build
from nlrewrite.execution import Execution
from nlrewrite.profiles import PROFILES
from nlrewrite.progress import Progress
from nlrewrite.simulate import rules as simulation
from nlrewrite.specs import RewriteSpec, TextFolder
from nlrewrite.text import sources
from nlrewrite.text.positions import positions
from nlrewrite.text.tokens import read_windows
from tests.text.conftest import made_up

CALIBRATORS = ("none", "quantile-6", "quantile-5-on-prompt", "levels")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """The evaluation of a small rewriting, as `evaluation`, and all that it was made from."""
    folder, store = tmp_path_factory.mktemp("texts"), Store(str(tmp_path_factory.mktemp("store")))
    for number in range(90):
        (folder / f"{number:02}.txt").write_text(made_up(number), encoding="utf-8")
    execution = Execution(text_folder=str(folder))
    fields = {
        **PROFILES["smoke"].fields,
        "subject": {**PROFILES["smoke"].fields["subject"], "kind": "tiny"},
        "text": {"source": sources.identified(TextFolder(), execution)},
        "calibrate": {"calibrators": CALIBRATORS, "folds": 2},
        "explain": {"max_quotes": 4, "max_words": 30, "min_active": 60},
    }
    folders: dict[str, Folder] = {}

    def step(label: str, kind: str, spec, **inputs: Artifact) -> Artifact:
        artifact = steps.name(kind, spec, inputs)
        if kind != "report":
            found = store.find(artifact)
            if found.manifest is None:
                steps.build(artifact, spec, inputs, store, execution, Progress(), "test", found)
        if kind == "evaluation":
            folders.update({name: store.folder(each) for name, each in {**inputs, kind: artifact}.items()})
        return artifact

    rewrite(RewriteSpec.model_validate(fields), step)
    return folders


def test_latents_without_a_sentence_get_the_mean_of_the_earlier_splits(made: dict[str, Folder]) -> None:
    explained = simulation.read(made["simulation"]).explained
    assert 0 < (~explained).sum() < len(explained)
    where = positions(read_windows(made["tokens"], "report"))
    coder = topk.read(made["coder"])
    vocabulary = json.loads(made["tokens"].path("tokens.json").read_text())["vocabulary"]
    found = build.gather(made, where, coder.dec_LE.numpy(), vocabulary)
    totals, count = 0.0, 0
    for split in ("explain", "calibrate"):
        active = build.read(made[split])
        sums = np.bincount(active.latents.ravel(), active.values.ravel(), minlength=coder.latents)
        totals, count = totals + sums, count + len(active.values)
    every = np.arange(len(where))
    assert found.mean.dense(every) == pytest.approx(np.tile(totals / count, (len(every), 1)), rel=1e-4)
    for _, codes in (*found.rewritten.values(), *found.lengths.values()):
        assert codes.dense(every)[:, ~explained] == pytest.approx(found.mean.dense(every)[:, ~explained])
    fitted, chosen = read_calibrated(made["calibration"])
    assert chosen in CALIBRATORS
    assert not chosen.endswith("on-prompt")
    for name, values in fitted.items():
        arrays = found.rewritten[name][0].arrays
        same = all(np.array_equal(arrays[label], array) for label, array in values.arrays.items())
        assert same != name.endswith("on-prompt"), name
        assert (found.rewritten[name][0].information == "test marginals") == name.endswith("on-prompt")


def test_the_files_agree_with_one_another(made: dict[str, Folder]) -> None:
    folder = made["evaluation"]
    results = json.loads(folder.path("results.json").read_text())
    sums = pd.read_parquet(folder.path("losses.parquet")).groupby("arm")[["ce", "positions"]].sum()
    mean = (sums["ce"] / sums["positions"]).tolist()
    ordered = [row["ce"] for position in ("all", "last") for row in results["arms"] if row["position"] == position]
    assert sorted(mean) == pytest.approx(sorted(ordered), rel=1e-4)
    head = results["headline"]
    quoted = [row for row in results["arms"] if all(row[name] == head[name] for name in KEY if name != "fraction")]
    assert [row["gap_closed"] for row in quoted if row["fraction"] == 1] == [head["gap_closed"]]
    assert (head["position"], head["fraction"], head["chosen_on"]) == ("all", 1, "calibrate")
    latents = pd.read_parquet(folder.path("latents.parquet"))
    assert head["n_unexplained"] == (~latents["explained"]).sum()
    spread = json.loads(folder.path("spread.json").read_text())
    positions_of_report = len(build.read(made["report"]).values)
    assert sum(spread["counts"]["true"]) == positions_of_report * len(latents)


KEY = (
    "arm", "site", "simulator", "explanation", "calibrator", "information", "topk", "selection", "fraction", "position",
    "subset_seed",
)  # fmt: skip


def test_two_evaluations_have_the_same_bytes(made: dict[str, Folder], tmp_path: Path) -> None:
    first = made["evaluation"]
    inputs = {name: folder for name, folder in made.items() if name != "evaluation"}
    spec = build.EvaluateSpec.model_validate(first.manifest.spec)
    build.build(spec, inputs, tmp_path, steps.Running(Execution(batch_tokens=8192), Progress()))
    for entry in first.manifest.files:
        assert (tmp_path / entry.path).read_bytes() == first.path(entry.path).read_bytes(), entry.path
