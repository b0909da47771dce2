import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nlrewrite import steps
from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.coders import form, train
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator, torch_generator
from nlrewrite.specs import CoderSpec, Site, Spec
from nlrewrite.steps import Running
from tests.subject import small_models

SPEC = CoderSpec(site=Site(layer=1), width=48, k=4, steps=60, batch=128)


def data(rows: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch_generator(0, "data")
    return 3 + torch.randn(rows, 8, generator=draws), 1 + torch.randn(rows, 5, generator=draws)


@pytest.mark.parametrize("skip", [True, False])
def test_a_coder_starts_as_the_constant_function(skip: bool) -> None:
    x_ND, y_NE = data()
    made = train.initial(SPEC.model_copy(update={"skip": skip}), x_ND, y_NE)
    code = made.encode(x_ND)
    assert code.values.max() > 0
    written = made.decode(code) + made.beside(x_ND)
    assert torch.equal(written, y_NE.mean(0).expand_as(y_NE))
    assert train.fvu(made, x_ND, y_NE) == pytest.approx(1)
    assert (made.skip_ED is not None) == skip


def test_the_encoder_is_centred_on_the_data() -> None:
    x_ND, y_NE = data()
    made = train.initial(SPEC, x_ND, y_NE)
    before = x_ND @ made.enc_LD.T + made.enc_bias_L
    assert before.mean(0).abs().max() < 1e-4
    assert before.std(0).mean() == pytest.approx(1, abs=0.1)
    again = train.initial(SPEC, x_ND, y_NE)
    assert torch.equal(again.enc_LD, made.enc_LD)
    other = train.initial(SPEC.model_copy(update={"seed": 1}), x_ND, y_NE)
    assert not torch.equal(other.enc_LD, made.enc_LD)


def test_the_unexplained_variance_in_closed_form() -> None:
    x_ND, y_NE = data()
    made = train.initial(SPEC, x_ND, y_NE)
    assert made.skip_ED is not None
    made.skip_ED = torch.linalg.lstsq(x_ND - x_ND.mean(0), y_NE - y_NE.mean(0)).solution.T
    made.dec_bias_E = y_NE.mean(0) - made.skip_ED @ x_ND.mean(0)
    residual = y_NE - made.beside(x_ND)
    expected = residual.square().sum() / (y_NE - y_NE.mean(0)).square().sum()
    assert train.fvu(made, x_ND, y_NE) == pytest.approx(float(expected), rel=1e-4)
    assert expected < 1


def test_the_schedule_warms_up_stays_and_falls_to_zero() -> None:
    shares = [train.schedule(step, 1000) for step in range(1001)]
    assert shares[0] == 1 / 50
    assert shares[49:700] == [1.0] * 651
    assert shares[850] == pytest.approx(0.5)
    assert shares[1000] == 0
    assert all(0 < train.schedule(step, 3) <= 1 for step in range(3))


# -- a coder of a small model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    store = Store(str(tmp_path_factory.mktemp("store")))

    def folder(kind: str, write) -> Folder:
        artifact = Artifact(kind=kind, digest="0" * 16)
        with store.attempt(artifact) as attempt:
            write(attempt.folder)
            made = steps.provenance(steps.STEPS["corpus"], Execution(), "test", 0.0)
            store.commit(attempt, version=1, spec=Spec(), inputs={}, made=made)
        return store.folder(artifact)

    def tokens(out: Path) -> None:
        from safetensors.numpy import save_file

        stream = generator(0, "stream").integers(0, small_models.VOCABULARY, 4000).astype(np.int32)
        save_file({"tokens": stream}, out / "train.safetensors")

    return {
        "subject": folder("subject", lambda out: small_models.save(longer(), out)),
        "tokens": folder("tokens", tokens),
    }


def longer():
    """A small model that reads the windows a coder is trained on."""
    from transformers import AutoModelForCausalLM

    config = small_models.config("gpt_neox")
    config.max_position_embeddings = train.CONTEXT
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.fixture(autouse=True)
def small_reservoir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "RESERVOIR_TOKENS", 4096)
    monkeypatch.setattr(train, "HELD_OUT_TOKENS", 1024)
    monkeypatch.setattr(train, "LIVE_TOKENS", 4096)


def build(inputs: dict[str, Folder], out: Path, spec: CoderSpec = SPEC) -> dict:
    out.mkdir(exist_ok=True)
    train.build(spec, inputs, out, Running(Execution(), Progress()))
    return json.loads((out / "training.json").read_text())


def test_training_explains_more_and_is_repeatable(inputs, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    summary = build(inputs, tmp_path / "one")
    losses = [point["fvu"] for point in summary["curve"]]
    assert losses[0] == pytest.approx(1, abs=0.05)
    assert losses[-1] < 0.7
    assert summary["fvu"] == losses[-1]
    assert summary["tokens_seen"] == 60 * 128
    assert summary["site"] == "gpt_neox.layers.1.mlp"
    assert 0 < summary["live_share"] <= 1
    build(inputs, tmp_path / "two")
    for file in (form.WEIGHTS, form.CONFIG, "training.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert torch.equal(state, torch.random.get_rng_state())
    other = build(inputs, tmp_path / "three", SPEC.model_copy(update={"seed": 1}))
    assert other["fvu"] != summary["fvu"]


def test_the_trained_coder_is_what_was_measured(inputs, tmp_path: Path) -> None:
    build(inputs, tmp_path)
    made = form.load(tmp_path / form.WEIGHTS, tmp_path / form.CONFIG)
    assert (made.latents, made.k) == (48, 4)
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert made.dec_LE.abs().max() > 0


def test_a_planted_dictionary_is_recovered_in_part(monkeypatch: pytest.MonkeyPatch, inputs, tmp_path: Path) -> None:
    """Rows that are sums of a few of 16 directions: a coder of 48 latents explains nearly all of them."""
    draws = torch_generator(0, "dictionary")
    directions = torch.nn.functional.normalize(torch.randn(16, 32, generator=draws), dim=1)

    class Rows:
        def __init__(self, *given: object) -> None:
            self.draws = torch_generator(1, "rows")

        def next(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            chosen = torch.rand(count, 16, generator=self.draws).argsort(1)[:, :3]
            codes = torch.zeros(count, 16).scatter(1, chosen, 1 + torch.rand(count, 3, generator=self.draws))
            return codes @ directions, codes @ directions

    monkeypatch.setattr(train, "_Activations", Rows)
    summary = build(inputs, tmp_path, SPEC.model_copy(update={"skip": False, "steps": 400, "batch": 256}))
    assert summary["fvu"] < 0.15


def test_a_stream_that_is_too_short_is_refused(inputs) -> None:
    with pytest.raises(SettingError, match="the train split has 64 tokens, a window has 64"):
        train._Activations(torch.nn.Identity(), None, np.zeros(64, np.int32), SPEC, 8192)  # type: ignore[arg-type]
