from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from nlrewrite import steps
from nlrewrite.activations import collect, pairs, statistics
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.coders import form
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.specs import ActivationsSpec, CoderSpec, Site, Spec
from nlrewrite.steps import Running
from tests.evaluate.planted import LATENTS, K, Planted, planted
from tests.subject import small_models


@pytest.fixture(scope="module")
def given() -> Planted:
    return planted()


@pytest.fixture(scope="module")
def inputs(given: Planted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    store = Store(str(tmp_path_factory.mktemp("store")))

    def folder(kind: str, spec: Spec, write) -> Folder:
        artifact = Artifact(kind=kind, digest="0" * 16)
        with store.attempt(artifact) as attempt:
            write(attempt.folder)
            made = steps.provenance(steps.STEPS["corpus"], Execution(), "test", 0.0)
            store.commit(attempt, version=1, spec=spec, inputs={}, made=made)
        return store.folder(artifact)

    columns = {name: getattr(given.windows, name) for name in ("tokens", "lengths", "document", "group", "start")}
    return {
        "subject": folder("subject", Spec(), lambda out: small_models.save(small_models.fresh("gpt_neox"), out)),
        "tokens": folder("tokens", Spec(), lambda out: save_file(columns, out / "explain.safetensors")),
        "coder": folder(
            "coder", CoderSpec(site=Site(layer=1), width=LATENTS, k=K), lambda out: form.save(given.coder, out)
        ),
    }


@pytest.mark.parametrize("batch_tokens", [64, 1000])
def test_what_is_stored_is_what_the_coder_says_of_each_window_alone(
    inputs, given: Planted, tmp_path: Path, batch_tokens: int
) -> None:
    running = Running(Execution(batch_tokens=batch_tokens), Progress())
    collect.build(ActivationsSpec(split="explain"), inputs, tmp_path, running)

    class Local:
        def path(self, name: str) -> Path:
            return tmp_path / name

    found = pairs.read(Local())  # type: ignore[arg-type]
    assert found.values.shape == found.latents.shape == (len(given.where), K)
    model = small_models.fresh("gpt_neox").requires_grad_(False)
    at = 0
    for row, length in enumerate(given.windows.lengths.tolist()):
        ids = torch.from_numpy(given.windows.tokens[row : row + 1, :length].astype(np.int64))
        record = collect.sites.activations_upto(model, given.located, ids)
        values, latents = given.coder.encode(record.x[0]).padded()
        expected = torch.zeros(length, LATENTS).scatter(1, latents, values).numpy()
        stored = np.zeros((length, LATENTS), dtype=np.float32)
        np.put_along_axis(stored, found.latents[at : at + length], found.values[at : at + length], axis=1)
        assert stored == pytest.approx(expected, abs=1e-4)
        at += length
    assert (found.values == 0).any()
    table = pd.read_parquet(tmp_path / "latents.parquet")
    assert table["count"].sum() == (found.values > 0).sum()
    assert len(table) == statistics.latents_counted(Local()) == LATENTS  # type: ignore[arg-type]
    examples = pd.read_parquet(tmp_path / "examples.parquet")
    for latent, position, value in zip(examples["latent"], examples["position"], examples["value"], strict=True):
        assert found.values[position][found.latents[position] == latent].tolist() == [value]


def test_the_site_is_the_one_the_coder_was_trained_at(inputs) -> None:
    assert form.site_of(inputs["coder"]) == Site(layer=1)
