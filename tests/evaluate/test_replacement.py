import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nlrewrite.artifacts import Store
from nlrewrite.coders.form import Coder
from nlrewrite.evaluate.replacement import build, replacement
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.specs import CoderSpec, MeasureSpec, Site
from nlrewrite.steps import Running
from nlrewrite.subject import sites
from nlrewrite.subject.batches import inside, padded
from nlrewrite.text.tokens import Windows
from tests.coders.formats import test_folding as published
from tests.evaluate import small_coders
from tests.evaluate.small_coders import SPEC
from tests.subject import small_models

PROGRESS = Progress()
LAYERS = range(small_models.LAYERS)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small_models.fresh("gpt_neox").requires_grad_(False)


def told(model, coders, batch_tokens=10_000):
    every, explain = small_coders.spoken(model), small_coders.spoken(model, seed=1)
    return replacement(model, coders, every, explain, SPEC, batch_tokens, PROGRESS)


def by_hand(model, coders) -> float:
    """Mean loss with all these coders in place, by one whole pass with hooks."""
    every = small_coders.spoken(model)
    ids, valid = padded(every), inside(every)

    def put(coder):
        def replace(x, y):
            flat = x.flatten(0, 1)
            return (coder.decode(coder.encode(flat)) + coder.beside(flat)).view_as(y)

        return replace

    with sites.patched_all(model, [(each, put(coder)) for each, coder in coders.items()]):
        log = torch.log_softmax(sites.logits(model, ids), -1)
    labels = torch.from_numpy(every.tokens[:, 1 : 1 + ids.shape[1]].astype("int64"))
    return float(-log.gather(-1, labels[..., None])[..., 0][valid].mean())


def test_perfect_coders_cost_nothing_at_once_alone_or_but_one(model):
    found = told(model, {small_coders.at(model, layer, "mlp-output"): small_coders.identity() for layer in LAYERS})
    assert found["all"]["ce"] == found["original"]["ce"]
    assert (found["all"]["kl"], found["all"]["recovered"]) == (0, 1)
    for each in found["layers"]:
        assert (each["alone"]["delta_ce"], each["all_but"]["delta_ce"], each["all_but"]["saved"]) == (0, 0, 0)
        assert each["clean"]["fvu"] == each["patched"]["fvu"] == 0
    assert (found["together"]["summed"], found["together"]["beyond"]) == (0, 0)


def test_every_arm_has_the_loss_of_a_pass_patched_by_hand(model):
    coders = {small_coders.at(model, layer): small_coders.random(4, seed=layer) for layer in LAYERS}
    for batch_tokens in (30, 10_000):
        found = told(model, coders, batch_tokens)
        assert found["all"]["ce"] == pytest.approx(by_hand(model, coders), abs=1e-5)
        for each, (located, coder) in zip(found["layers"], coders.items(), strict=True):
            others = {one: of for one, of in coders.items() if one != located}
            assert each["site"] == located.name
            assert each["alone"]["ce"] == pytest.approx(by_hand(model, {located: coder}), abs=1e-5)
            assert each["all_but"]["ce"] == pytest.approx(by_hand(model, others), abs=1e-5)
            saved = found["all"]["ce"] - each["all_but"]["ce"]
            assert each["all_but"]["saved"] == pytest.approx(saved)
            assert each["all_but"]["saved_low"] <= saved <= each["all_but"]["saved_high"]
        alone = sum(each["alone"]["delta_ce"] for each in found["layers"])
        assert found["together"]["summed"] == pytest.approx(alone)
        assert found["together"]["beyond"] == pytest.approx(found["all"]["delta_ce"] - alone)


def test_the_lowest_layer_reads_the_same_in_both_models_and_the_others_do_not(model):
    coders = {small_coders.at(model, layer): small_coders.random(4, seed=layer) for layer in LAYERS}
    lowest, *others = told(model, coders)["layers"]
    assert lowest["clean"] == lowest["patched"]
    for each in others:
        assert each["clean"]["fvu"] != pytest.approx(each["patched"]["fvu"], rel=1e-3)


def test_the_order_in_which_layers_are_named_does_not_matter(model):
    coders = {small_coders.at(model, layer): small_coders.random(4, seed=layer) for layer in LAYERS}
    assert told(model, coders) == told(model, dict(reversed(coders.items())))


def test_one_layer_is_its_own_all(model):
    located = small_coders.at(model, 1)
    found = told(model, {located: small_coders.random(4)})
    (layer,) = found["layers"]
    assert (
        layer["alone"]["ce"] == found["all"]["ce"] == pytest.approx(by_hand(model, {located: small_coders.random(4)}))
    )
    assert found["together"] is None
    assert layer["all_but"] is None


def test_zero_ablation_of_all_layers_is_a_pass_with_zeros(model):
    zeros = {small_coders.at(model, layer): small_coders.silent(torch.zeros(small_coders.WIDTH)) for layer in LAYERS}
    found = told(model, zeros)
    assert found["zero"]["ce"] == found["all"]["ce"] == pytest.approx(by_hand(model, zeros), abs=1e-5)
    assert found["mean"]["ce"] != found["zero"]["ce"]


def test_a_step_writes_what_programs_read(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    inputs = {"subject": small_coders.subject(store, "llama"), "tokens": small_coders.tokens(store)}
    for layer in (0, 2):
        spec = CoderSpec(k=4, width=24, skip=False, site=Site(layer=layer))
        files = {"coder": small_coders.saved(small_coders.random(4, seed=layer))}
        inputs[f"coder-{layer}"] = small_coders.commit(store, "coder", files, spec, layer)
    build(MeasureSpec(resamples=200), inputs, tmp_path, Running(Execution(), PROGRESS))
    found = json.loads((tmp_path / "replacement.json").read_text())
    assert [each["layer"] for each in found["layers"]] == [0, 2]
    assert found["original"]["ce"] > 0


subject = published.subject


def test_a_published_programs_losses_of_replaced_layers_are_ours(subject):
    """Its golden losses, of a GPT-2 whose every layer has a transcoder: in double precision there, in single here."""
    model = copy.deepcopy(subject).float()
    ids = np.random.RandomState(7).randint(1, 40, (12, 8)).astype(np.int32)
    tokens, place = np.concatenate([np.zeros((12, 1), np.int32), ids], axis=1), np.arange(12, dtype=np.int32)
    every = Windows(tokens, np.full(12, 8, np.int32), place, place, np.zeros_like(place))
    coders = {}
    for layer in LAYERS:
        made = published.fitted(subject, layer)
        tensors = (made.enc_LD, made.enc_bias_L, made.dec_LE, made.dec_bias_E)
        coders[small_coders.at(model, layer)] = Coder(*(each.float() for each in tensors), None, 0, "relu")
    found = replacement(model, coders, every, every, SPEC, 10_000, PROGRESS)
    for arm, named in (("original", "original"), ("all", "all"), ("zero", "zero_all")):
        assert found[arm]["ce"] == pytest.approx(published.GOLDEN["replacement"][named], abs=2e-5), arm
    assert found["layers"][1]["alone"]["ce"] == pytest.approx(published.GOLDEN["replacement"]["layer1"], abs=2e-5)
