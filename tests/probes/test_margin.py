"""The margin's splits, subsets and joined simulations; a seed measured on a small subject."""

import numpy as np
import pytest

from nlrewrite.probes import margin, panel
from nlrewrite.probes.margin import FRACTIONS
from nlrewrite.probes.panel import Panel
from nlrewrite.probes.upstream import Part
from nlrewrite.progress import Progress
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Spoken
from tests.probes.making import made

ALL = slice(None)


def said(count: int, shift: int, latents: int) -> Simulated:
    latent = np.arange(latents, dtype=np.int32)
    position = ((latent + shift) % count).astype(np.int32)
    table = np.stack([np.eye(10)[0], np.eye(10)[5]])
    return Simulated(latent, position, np.ones(latents, np.int8), table, np.ones(latents, bool))


def test_halves_hold_whole_groups_and_move_with_the_seed() -> None:
    up, _ = made()
    whole = margin.joined(up.calibrate, up.report)
    assert whole.count == up.calibrate.count + up.report.count
    (first, second), (first_rows, second_rows) = margin.split(whole, 0)
    groups = whole.windows.group
    assert not set(groups[first]) & set(groups[second])
    assert sorted([*first, *second]) == list(range(len(whole.windows)))
    assert sorted([*first_rows, *second_rows]) == list(range(whole.count))
    part: Part = whole.at(first)
    assert (part.truth_PL != whole.truth_PL[first_rows]).nnz == 0
    assert any(margin.split(whole, seed)[0][0].tolist() != first.tolist() for seed in (1, 2, 3))


def test_subsets_are_nested() -> None:
    masks = margin.nested(40, FRACTIONS, 0)
    assert [int(mask.sum()) for mask in masks.values()] == [4, 10, 20, 30, 40]
    assert all((inner <= outer).all() for inner, outer in zip(masks.values(), [*masks.values()][1:], strict=False))


def test_what_was_said_of_both_parts_stands_behind_each_other() -> None:
    one, other = said(7, 0, 5), said(9, 3, 5)
    shifted = Simulated(other.latent, other.position + 7, other.level, other.digits_ZD, other.explained)
    both = Spoken(margin.together(one, shifted), 16).scores(ALL)
    assert both[:, :7].tolist() == Spoken(one, 7).scores(ALL).tolist()
    assert both[:, 7:].tolist() == Spoken(other, 9).scores(ALL).tolist()


@pytest.mark.parametrize("in_last", [False, True])
def test_in_the_last_layer_the_end_of_a_prompt_is_any_position(in_last: bool) -> None:
    up, _ = made(2 if in_last else None)
    ends = np.zeros(up.report.count, dtype=bool)
    ends[np.cumsum(up.report.windows.lengths) - 1] = True
    assert up.in_last_layer == in_last
    figures = Panel(up, Progress(), ends_P=ends if in_last else None)
    mean = panel.constant(up.mean_L, up.report.truth_PL, up.dec_LE)
    for name, written in (("mean", mean), ("original", None)):
        figures.add(name, written)
        figures.add(f"last {name}", written, "last")
    told = figures.measured(200, 0)
    alone = told.added("last mean", "last original")
    if in_last:
        read_off = told.added(f"mean{panel.PROMPTS}", f"original{panel.PROMPTS}")
        assert (read_off.mean, read_off.low) == pytest.approx((alone.mean, alone.low), abs=1e-5)
    else:
        with pytest.raises(KeyError):
            told.added(f"mean{panel.PROMPTS}", "original")


def test_prompts_are_long_enough_and_few_enough() -> None:
    up, _ = made()
    mask = margin.prompts(up.report, 0)
    window, offset = up.report.where.window[mask], up.report.where.offset[mask]
    assert offset.min() >= up.report.windows.lengths.min() - 1
    assert np.bincount(window).max() <= margin.PROMPTS_OF_WINDOW
    assert set(window) == set(range(len(up.report.windows)))


def test_nested_subsets_are_written_as_one_by_one() -> None:
    up, _ = made()
    truth = up.report.truth_PL
    values = np.random.default_rng(0).random((up.latents, up.report.count)).astype(np.float32)
    masks = margin.nested(up.latents, (0.25, 0.5, 1.0), 0)
    rings = margin.written_in_rings(iter([(ALL, values)]), truth, up.dec_LE, masks)
    plain = panel.output(iter([(ALL, values)]), truth, up.dec_LE, masks).written
    for name, each in plain.items():
        assert rings[name] == pytest.approx(each, abs=1e-5)


@pytest.fixture(scope="module", params=[None, 2])
def found(request: pytest.FixtureRequest) -> margin.Margin:
    up, explain = made(request.param)
    whole = margin.subject(up, explain, said(up.calibrate.count, 0, 12), said(up.report.count, 5, 12))
    return margin.measure(whole, 3, Progress(), (0.5, 1.0), 200)


def test_a_bound_lies_above_every_estimate(found: margin.Margin) -> None:
    assert len(found.estimates) == 3 * 2 * 2
    assert found.bound >= found.estimates[found.worst]
    assert found.worst in found.estimates
    assert found.holds == (found.share < margin.ALLOWED)
    assert set(found.gap_closed) == {
        f"{name}, {position}" for name in ("rules", "oracle 0.84", "oracle 0.95") for position in ("all", "last")
    }
    assert set(found.loser_above_mean) == {"all", "last"}
    assert found.printable()["holds"] == found.holds
