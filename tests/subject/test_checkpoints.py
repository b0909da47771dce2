import json
from pathlib import Path

import pytest
import torch

from nlrewrite import specs
from nlrewrite.artifacts import Artifact, Folder, Provenance, Store
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.subject import load, sites
from nlrewrite.subject.checkpoints import checkpoints, steps
from tests.subject import small_hub, small_models

MODEL = "somebody/small"
FINAL, FIRST, SECOND = ("0" * 40, "a" * 40, "b" * 40)
NAMES = {"step0": FIRST, "step1000": SECOND}
MADE = Provenance(time="", seconds=0, run="", commit="", dirty=False, source="", packages={}, execution={})


def subject(root: Path, about: dict[str, str], files: dict[str, bytes] | None = None) -> Folder:
    store = Store(str(root))
    artifact = Artifact(kind="subject", digest="0" * 16)
    with store.attempt(artifact) as attempt:
        for name, data in {load.REFERENCE: json.dumps(about).encode(), **(files or {})}.items():
            path = attempt.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        store.commit(attempt, version=1, spec=specs.TextSpec(), inputs={}, made=MADE)
    return store.folder(artifact)


@pytest.fixture
def published(tmp_path: Path) -> dict[tuple[str, str], Path]:
    """Three revisions of a model, with weights of their own."""
    models = {}
    for seed, commit in enumerate((FINAL, FIRST, SECOND)):
        models[MODEL, commit] = small_models.save(small_models.fresh("gpt_neox", seed=seed), tmp_path / f"m{seed}")
    return models


ABOUT = {"kind": "hub", "dtype": "float32", "model": MODEL, "revision": FINAL}


def test_names_of_revisions_become_commits_and_their_weights_are_read(
    published: dict[tuple[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = subject(tmp_path / "store", ABOUT), tmp_path / "cache"
    ids, current = small_models.ids(), small_models.fresh("gpt_neox")
    with small_hub.serving(published, NAMES) as (address, asked):
        small_hub.use(monkeypatch, address, cache)
        found = checkpoints(folder, ("step1000", "step0"))
        assert [(each.step, each.name, each.commit) for each in found] == [
            (0, "step0", FIRST),
            (1000, "step1000", SECOND),
        ]
        assert not any("safetensors" in path for path in asked)
        for each, seed in zip(found, (1, 2), strict=True):
            loaded = each.load(current, Execution())
            assert torch.equal(sites.logits(loaded, ids), sites.logits(small_models.fresh("gpt_neox", seed=seed), ids))
        with pytest.raises(Unreachable, match=r"no revision step7 of .*evaluate\.checkpoints"):
            checkpoints(folder, ("step0", "step7"))
    assert not any(f"resolve/{name}" in path for path in asked for name in NAMES)
    small_hub.use(monkeypatch, "http://127.0.0.1:9", cache, offline=True)
    assert [each.commit for each in checkpoints(folder, ("step0", "step1000"))] == [FIRST, SECOND]
    with pytest.raises(Unreachable, match="cannot be reached"):
        checkpoints(folder, ("step0", "step512"))


def test_checkpoints_are_of_the_subjects_dtype(
    published: dict[tuple[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = subject(tmp_path / "store", {**ABOUT, "dtype": "bfloat16"})
    with small_hub.serving(published, NAMES) as (address, _):
        small_hub.use(monkeypatch, address, tmp_path / "cache")
        first, _ = checkpoints(folder, tuple(NAMES))
        loaded = first.load(small_models.fresh("gpt_neox"), Execution())
    assert next(loaded.parameters()).dtype == torch.bfloat16


def test_a_subject_trained_here_keeps_its_own(tmp_path: Path) -> None:
    from safetensors.torch import save

    models = {step: small_models.fresh("gpt_neox", seed=step) for step in (2, 16, 8)}
    kept = {f"checkpoints/step-{step:06}.safetensors": save(model.state_dict()) for step, model in models.items()}
    folder = subject(tmp_path / "store", {"kind": "tiny", "dtype": "float32"}, kept)
    found, ids = checkpoints(folder), small_models.ids()
    assert [each.step for each in found] == [2, 8, 16]
    own = small_models.fresh("gpt_neox")
    for each in found:
        assert torch.equal(sites.logits(each.load(own, Execution()), ids), sites.logits(models[each.step], ids))
    with pytest.raises(SettingError, match=r"kind=tiny.*Leave --set evaluate\.checkpoints empty"):
        checkpoints(folder, ("step0", "step8"))


def test_a_hub_subject_without_names_has_none(tmp_path: Path) -> None:
    assert checkpoints(subject(tmp_path / "store", ABOUT)) == []


def test_a_name_says_its_step() -> None:
    assert steps(("step0", "step512", "run-2/step001000")) == {"step0": 0, "step512": 512, "run-2/step001000": 1000}
    with pytest.raises(SettingError, match=r"must end with its training step.*'main'"):
        steps(("step0", "main"))
    with pytest.raises(SettingError, match="two checkpoints are of step 8"):
        steps(("step8", "step008"))
    with pytest.raises(SettingError, match="takes two at least"):
        steps(("step8",))
