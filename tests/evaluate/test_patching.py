import numpy as np
import pytest
import torch
from torch import nn

from nlrewrite.coders.form import Coder
from nlrewrite.errors import SettingError
from nlrewrite.evaluate.losses import losses
from nlrewrite.evaluate.patching import ORIGINAL, Reading, constant, drawn, in_place, means, measure
from nlrewrite.progress import Progress
from nlrewrite.specs import MeasureSpec
from nlrewrite.subject import sites
from tests.evaluate import small_coders
from tests.evaluate.small_coders import SPEC
from tests.subject import small_models

PROGRESS = Progress()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small_models.fresh("gpt2").requires_grad_(False)


def recorded(model: nn.Module, located: sites.Located) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y at every position, window by window without padding."""
    every = small_coders.windows()
    found = []
    for row, length in enumerate(every.lengths.tolist()):
        ids = torch.from_numpy(every.tokens[row : row + 1, :length].astype(np.int64))
        record = sites.activations_upto(model, located, ids)
        found.append((record.x[0], record.y[0]))
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_one_site_gives_the_losses_of_an_evaluation(model, batch_tokens):
    every, located = small_coders.windows(), small_coders.at(model, 1)
    coder = small_coders.random(4)
    arms = {ORIGINAL: {}, "coder": {located: Reading(coder, every)}}
    found = measure(model, every, arms, SPEC, batch_tokens, PROGRESS)

    def write(rows, x, y):
        return coder.decode(coder.encode(x)) + coder.beside(x)

    wanted = losses(model, located, every, {"a": ("all", write), "b": ("all", None)}, 10_000, PROGRESS)
    assert found.row("coder")["ce"] == pytest.approx(wanted["a"].ce.mean(), abs=1e-5)
    assert found.row("coder")["kl"] == pytest.approx(wanted["a"].kl.mean(), abs=1e-5)
    assert found.row("coder")["agrees"] == pytest.approx(wanted["a"].agrees.mean(), abs=1e-9)
    assert found.row(ORIGINAL)["ce"] == pytest.approx(wanted["b"].ce.mean(), abs=1e-5)
    assert found.row(ORIGINAL)["kl"] == 0
    assert found.row("coder")["kl"] > 0.01


def test_a_paired_interval_holds_its_difference_and_is_narrower_than_the_loss_itself(model):
    every, located = small_coders.windows(40), small_coders.at(model, 2)
    arms = {ORIGINAL: {}, "coder": {located: Reading(small_coders.random(4), every)}}
    row = measure(model, every, arms, SPEC, 10_000, PROGRESS).row("coder")
    assert row["delta_ce_low"] < row["delta_ce"] < row["delta_ce_high"]
    assert row["delta_ce_high"] - row["delta_ce_low"] < row["ce_high"] - row["ce_low"]


def test_a_reading_tells_what_the_coder_did_at_every_position(model):
    every, located = small_coders.windows(), small_coders.at(model, 1)
    coder = small_coders.random(4)
    reading = Reading(coder, every)
    measured = measure(model, every, {ORIGINAL: {}, "coder": {located: reading}}, SPEC, 50, PROGRESS)
    x, y = recorded(model, located)
    code = coder.encode(x)
    error = (coder.decode(code) + coder.beside(x) - y).square().sum()
    row = reading.row(measured)
    assert row["fvu"] == pytest.approx(float(error / (y - y.mean(0)).square().sum()), rel=1e-4)
    assert row["l0"] == pytest.approx(float((code.values > 0).sum() / len(x)), rel=1e-6)
    silent = coder.latents - len(torch.unique(code.indices[code.values > 0]))
    assert row["dead_share"] == pytest.approx(silent / coder.latents)
    for name in ("fvu", "l0"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_what_is_told_of_a_coder_does_not_depend_on_batches(model):
    every, located = small_coders.windows(), small_coders.at(model, 1)
    rows = []
    for batch_tokens in (1, 40, 10_000):
        reading = Reading(small_coders.random(16), every)
        arms = {ORIGINAL: {}, "coder": {located: reading}}
        rows.append(reading.row(measure(model, every, arms, SPEC, batch_tokens, PROGRESS)))
    assert rows[0]["l0_low"] < rows[0]["l0"] < rows[0]["l0_high"]
    for other in rows[1:]:
        assert other == pytest.approx(rows[0], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_coder_of_another_precision_stands_in_a_model_of_single(model, dtype):
    every, located = small_coders.windows(), small_coders.at(model, 1)
    coder = small_coders.random(6)
    tensors = (coder.enc_LD, coder.enc_bias_L, coder.dec_LE, coder.dec_bias_E)
    other = Coder(*(each.to(dtype) for each in tensors), None, coder.k)
    arms = {ORIGINAL: {}, "one": {located: Reading(coder, every)}, "other": {located: Reading(other, every)}}
    arms["plain"] = {located: in_place(other)}
    found = measure(model, every, arms, SPEC, 10_000, PROGRESS)
    assert found.row("other")["ce"] == pytest.approx(found.row("one")["ce"], abs=0.05)
    assert found.row("other")["ce"] == found.row("plain")["ce"]


def test_variance_is_exact_where_the_mean_is_large():
    """Variance about the mean of all tokens, though the sums are taken about the first batch's."""
    every = small_coders.windows()
    reading = Reading(small_coders.silent(torch.zeros(small_coders.WIDTH)), every)
    window = torch.arange(12).repeat_interleave(torch.from_numpy(every.lengths.astype(np.int64)))
    y = torch.randn(len(window), small_coders.WIDTH, generator=torch.Generator().manual_seed(0)) + 100
    for rows in (slice(0, 20), slice(20, None)):
        reading(window[rows], y[rows], y[rows])

    class Counted:
        draws = measure_nothing(every)
        counts_G = np.bincount(every.group, every.lengths).astype(float)
        per_group = staticmethod(lambda sums: np.zeros((6, 1)))

    row = reading.row(Counted())
    wanted = y.double().square().sum() / (y.double() - y.double().mean(0)).square().sum()
    assert row["fvu"] == pytest.approx(float(wanted), rel=1e-5)


def measure_nothing(every):
    from nlrewrite.evaluate.bootstrap import draw
    from nlrewrite.seeds import generator

    return draw(len(np.unique(every.group)), 200, generator(0, "test"))


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_means_are_over_positions_alone(model, kind):
    located = [small_coders.at(model, layer, kind) for layer in (0, 2)]
    found = means(model, located, small_coders.windows(), 40, PROGRESS)
    for each in located:
        torch.testing.assert_close(found[each], recorded(model, each)[1].mean(0), atol=1e-5, rtol=1e-5)


def test_what_is_written_on_padding_changes_nothing(model):
    every, located = small_coders.windows(), small_coders.at(model, 0)
    other = every[:]
    tokens = other.tokens.copy()
    for row, length in enumerate(other.lengths):
        tokens[row, length + 1 :] = 5
    changed = type(other)(tokens, other.lengths, other.document, other.group, other.start)
    rows = []
    for some in (every, changed):
        arms = {ORIGINAL: {}, "coder": {located: Reading(small_coders.random(4), some)}}
        rows.append(measure(model, some, arms, SPEC, 10_000, PROGRESS).row("coder"))
    assert rows[0] == rows[1]


def test_windows_are_drawn_by_the_seed_and_keep_their_order():
    every = small_coders.windows(40)
    one, same, other = (drawn(every, 10, seed, "report") for seed in (1, 1, 2))
    assert len(one) == 10
    assert (one.tokens == same.tokens).all()
    assert (one.tokens != other.tokens).any()
    assert (np.diff(one.document) >= 0).all()
    assert drawn(every, 40, 0, "report") is every


def test_a_coder_that_writes_no_number_is_refused(model):
    every, located = small_coders.windows(), small_coders.at(model, 1)
    arms = {ORIGINAL: {}, "coder-8": {located: constant(torch.full((small_coders.WIDTH,), torch.nan))}}
    with pytest.raises(SettingError, match="with coder-8 in place it is none in windows 0 to 11"):
        measure(model, every, arms, SPEC, 10_000, PROGRESS)


def test_one_document_group_has_no_interval(model):
    with pytest.raises(SettingError, match="at least 2 document groups"):
        measure(model, small_coders.windows(2), {ORIGINAL: {}}, MeasureSpec(), 10_000, PROGRESS)
