import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nlrewrite.artifacts import Store
from nlrewrite.evaluate.frontier import build, front, frontier, varied
from nlrewrite.evaluate.patching import means
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.specs import CoderSpec, MeasureSpec, Site
from nlrewrite.steps import Running
from tests.evaluate import small_coders
from tests.evaluate.small_coders import SPEC
from tests.subject import small_models

PROGRESS = Progress()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small_models.fresh("gpt2").requires_grad_(False)


def told(model, coders, kind="mlp-output", layer=1):
    at = small_coders.at(model, layer, kind)
    given = {label: (at, coder) for label, coder in coders.items()}
    found = frontier(
        model, given, small_coders.spoken(model), small_coders.spoken(model, seed=1), SPEC, 10_000, PROGRESS
    )
    return found, {row["label"]: row for row in found["coders"]}


@pytest.mark.parametrize("kind", ["mlp-output", "residual"])
def test_a_perfect_coder_costs_nothing_and_recovers_all(model, kind):
    found, rows = told(model, {"coder-64": small_coders.identity()}, kind)
    row = rows["coder-64"]
    assert row["ce"] == found["original"]["ce"]
    assert (row["delta_ce"], row["kl"], row["agrees"]) == (0, 0, 1)
    assert (row["recovered"], row["recovered_low"], row["recovered_high"]) == (1, 1, 1)
    assert row["fvu"] == 0
    assert row["l0"] == pytest.approx(small_coders.WIDTH)


def test_a_coder_that_writes_the_mean_recovers_nothing(model):
    at = small_coders.at(model, 1)
    mean = means(model, [at], small_coders.spoken(model, seed=1), 10_000, PROGRESS)[at]
    found, rows = told(model, {"coder-2": small_coders.silent(mean)}, "mlp")
    row, ablated = rows["coder-2"], found["ablations"][0]
    assert (ablated["arm"], ablated["site"]) == ("mean", at.name)
    assert row["ce"] == ablated["ce"]
    assert (row["recovered"], row["recovered_low"], row["recovered_high"]) == (0, 0, 0)
    assert (row["l0"], row["dead_share"]) == (0, 1)
    assert row["fvu"] >= 1


def test_zero_ablation_writes_zero(model):
    found, rows = told(model, {"coder-2": small_coders.silent(torch.zeros(small_coders.WIDTH))})
    assert rows["coder-2"]["ce"] == found["ablations"][1]["ce"]
    assert found["ablations"][1]["arm"] == "zero"


def test_what_comes_between_is_recovered_in_part_and_compared_in_pairs(model):
    found, rows = told(model, {"coder-4": small_coders.random(4), "coder-64": small_coders.identity()})
    worse, better = rows["coder-4"], rows["coder-64"]
    mean = found["ablations"][0]
    share = (mean["ce"] - worse["ce"]) / (mean["ce"] - found["original"]["ce"])
    assert worse["recovered"] == pytest.approx(share)
    assert worse["over_mean"] == pytest.approx(worse["ce"] - mean["ce"])
    following = worse["next"]
    assert following["label"] == "coder-64"
    assert following["delta_ce"] == pytest.approx(better["ce"] - worse["ce"])
    assert following["delta_ce_low"] <= following["delta_ce"] <= following["delta_ce_high"]
    assert better["next"] is None
    assert (better["front"], better["front_share"]) == (True, 1)


def test_coders_at_several_sites_have_their_own_ablations(model):
    coders = {f"coder-{layer}": (small_coders.at(model, layer), small_coders.random(4)) for layer in (2, 0)}
    every, explain = small_coders.spoken(model), small_coders.spoken(model, seed=1)
    found = frontier(model, coders, every, explain, SPEC, 10_000, PROGRESS)
    assert [(each["layer"], each["arm"]) for each in found["ablations"]] == [
        *((0, "mean"), (0, "zero")),
        *((2, "mean"), (2, "zero")),
    ]
    for row in found["coders"]:
        assert (row["front"], row["front_share"], row["next"]) == (True, 1, None)  # none stands where the other does
        alone, _ = told(model, {row["label"]: small_coders.random(4)}, "mlp", row["layer"])
        for name in ("ce", "kl", "recovered", "fvu"):
            assert row[name] == pytest.approx(alone["coders"][0][name], rel=1e-9), name


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)


@given(points)
def test_the_front_is_what_nobody_beats(found):
    on = front([l0 for l0, _ in found], [ce for _, ce in found])
    for at, (l0, ce) in enumerate(found):
        beaten = any((a <= l0 and b <= ce) and (a, b) != (l0, ce) for a, b in found)
        assert on[at] == (not beaten)
    assert any(on)


def test_what_was_varied_is_found_by_its_values():
    def spec(**changes):
        return CoderSpec(skip=False, **changes).model_dump(mode="json")

    assert varied({f"coder-{k}": spec(k=k) for k in (4, 8)}) == "k"
    penalties = {f"coder-{each:g}": spec(activation="relu", penalty=each) for each in (1e-4, 0.5)}
    assert varied(penalties) == "penalty"
    assert varied({f"coder-{layer}": spec(site=Site(layer=layer)) for layer in (0, 5)}) == "layer"
    assert varied({"coder-<b>": spec(k=4)}) == ""


def test_a_step_writes_what_programs_read(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    inputs = {"subject": small_coders.subject(store), "tokens": small_coders.tokens(store)}
    for number, k in enumerate((2, 6)):
        spec = CoderSpec(k=k, width=24, skip=False, site=Site(layer=1))
        files = {"coder": small_coders.saved(small_coders.random(k))}
        inputs[f"coder-{k}"] = small_coders.commit(store, "coder", files, spec, number)
    written = []
    for name, batch_tokens in (("one", 10_000), ("two", 10_000), ("three", 64)):
        (tmp_path / name).mkdir()
        execution = Execution(batch_tokens=batch_tokens)
        build(MeasureSpec(windows=8, resamples=200), inputs, tmp_path / name, Running(execution, PROGRESS))
        written.append((tmp_path / name / "frontier.json").read_text())
    assert written[0] == written[1]
    found, again = (json.loads(each) for each in (written[0], written[2]))
    assert found["over"] == "k"
    assert (found["windows"], found["groups"] >= 2) == (8, True)
    assert [row["value"] for row in found["coders"]] == ["2", "6"]
    for row, other in zip(found["coders"], again["coders"], strict=True):
        assert row["ce"] == pytest.approx(other["ce"], abs=1e-5), "batches are no part of the result"
