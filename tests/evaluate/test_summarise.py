import json
from dataclasses import replace

import numpy as np
import pytest

from nlrewrite.errors import SettingError
from nlrewrite.evaluate import paired
from nlrewrite.evaluate.losses import Losses
from nlrewrite.evaluate.summarise import Summary, headline
from nlrewrite.text.positions import positions
from nlrewrite.text.tokens import Windows
from tests.evaluate.study import COST, FRACTIONS, Study, exact, study, windows

Row = dict[str, object]


@pytest.fixture(scope="module")
def given() -> Study:
    return study()


@pytest.fixture(scope="module")
def told(given: Study) -> Summary:
    return given.told()


def one(rows: list[Row], **key: object) -> Row:
    (found,) = [row for row in rows if all(row[name] == value for name, value in key.items())]
    return found


def number(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float), name
    return float(value)


def interval(row: Row, name: str) -> tuple[float, float, float]:
    return number(row, f"{name}_low"), number(row, name), number(row, f"{name}_high")


def by_window(given: Study, at: int) -> np.ndarray:
    ce = given.losses[str(at)].ce
    if given.planned[at].key.position == "last":
        return ce
    return np.bincount(given.where.window, ce) / given.windows.lengths


# -- rows -------------------------------------------------------------------------------------------------------------


def test_every_figure_is_a_number_or_nothing(told: Summary) -> None:
    for rows in (told.rows, told.over_subsets, told.curves, [told.notes, headline(told.rows, "hurdle")]):
        assert rows
        json.dumps(rows, allow_nan=False)
    assert len({tuple(row) for row in [*told.rows, *told.over_subsets]}) == 1, "all rows have the same columns"


def test_figures_of_contexts_are_those_of_their_means(given: Study, told: Summary) -> None:
    for position in ("all", "last"):
        key = {"selection": "all", "position": position}
        at, original, mean = (given.of(arm=arm, **key) for arm in ("rewritten", "original", "mean"))
        delta = by_window(given, at) - by_window(given, original)
        over = by_window(given, at) - by_window(given, mean)
        row = one(told.rows, arm="rewritten", **key)
        assert row["median_delta_ce"] == pytest.approx(np.median(delta))
        assert row["trimmed_delta_ce"] == pytest.approx(paired.trimmed_mean(np.sort(delta)))
        assert row["hodges_lehmann_delta_ce"] == pytest.approx(paired.hodges_lehmann(np.sort(delta)), abs=1e-6)
        assert row["q95_delta_ce"] == pytest.approx(np.quantile(delta, 0.95))
        assert row["win_rate"] == pytest.approx((over < 0).mean())
        assert row["win_rate_original"] == pytest.approx((delta < 0).mean())
        low, share, high = interval(row, "win_rate")
        assert 0 < low < share <= high <= 1
        assert row["median_over_mean"] == pytest.approx(np.median(over))
        assert row["n_windows"] == len(given.windows)
        losses = given.losses[str(at)]
        assert losses.kl_coder is not None
        assert losses.agrees is not None
        assert row["kl_coder"] == pytest.approx(losses.kl_coder.mean())
        assert row["agreement"] == pytest.approx(losses.agrees.mean())
        for name in ("kl_coder", "agreement", "delta_ce", "over_mean", "over_mean_kl", "gap_closed_kl", "site_share"):
            low, middle, high = interval(row, name)
            assert low < middle < high, name
    last = one(told.rows, arm="rewritten", selection="all", position="last")
    assert last["delta_ce_se_contexts"] == pytest.approx(delta.std(ddof=1) / np.sqrt(len(delta)))
    assert last["delta_ce_se"] == pytest.approx(
        paired.spread(delta, np.ones(len(delta)), given.windows.group).clustered
    )


def test_contexts_to_detect_are_those_of_the_paired_difference(given: Study, told: Summary) -> None:
    row = one(told.rows, arm="rewritten", selection="all", position="last")
    over = by_window(given, given.of(arm="rewritten", selection="all", position="last"))
    over = over - by_window(given, given.of(arm="mean", selection="all", position="last"))
    deff = paired.spread(over, np.ones(len(over)), given.windows.group).design_effect
    assert row["design_effect"] == pytest.approx(deff)
    expected = 7.8488797 * over.var(ddof=1) * deff / over.mean() ** 2
    assert row["contexts_to_detect"] == max(2, int(np.ceil(expected)))
    assert number(row, "detectable") == pytest.approx(np.sqrt(7.8488797 * over.var(ddof=1) * deff / len(over)))
    mean = one(told.rows, arm="mean", selection="all", position="last")
    assert mean["contexts_to_detect"] is None
    assert interval(mean, "over_mean") == (0, 0, 0)


def test_shares_add_up() -> None:
    rows = study(exact).told().rows
    for position in ("all", "last"):
        for row in rows:
            if row["position"] != position:
                continue
            arm, fraction = str(row["arm"]), number(row, "fraction")
            if arm in COST and arm != "coder":
                gap = fraction * (COST["mean"] - COST["coder"])
                assert row["gap_closed"] == pytest.approx((COST["mean"] - COST[arm]) / 1.0)
                assert row["over_mean"] == pytest.approx(fraction * (COST[arm] - COST["mean"]))
                assert row["site_share"] == pytest.approx((gap - fraction * (COST[arm] - COST["coder"])) / 2.0)
            if arm == "rewritten":
                assert row["over_shuffled"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
                assert (row["win_rate"], row["win_rate_original"]) == (1.0, 0.0)
    head = headline(rows, "hurdle")
    assert (head["coder_share"], head["coder_share_low"]) == pytest.approx((0.5, 0.5))
    assert head["gap_closed"] == pytest.approx(0.5)


def test_losses_by_the_third_of_the_base_loss(given: Study) -> None:
    """Arms that cost what the prompt costs cost more where prompts cost more."""
    losses = {
        name: each if given.planned[int(name)].key.arm == "original" else replace(each, ce=1.1 * base_of(given, name))
        for name, each in given.losses.items()
    }
    rows = replace(given, losses=losses).told().rows
    row = one(rows, arm="rewritten", selection="all", position="last")
    thirds = row["delta_ce_by_base_loss"]
    assert isinstance(thirds, list)
    base = by_window(given, given.of(arm="original", position="last"))
    ends = np.quantile(base, [1 / 3, 2 / 3])
    expected = [0.1 * base[np.searchsorted(ends, base, side="right") == third].mean() for third in range(3)]
    assert [third["mean"] for third in thirds] == pytest.approx(expected)
    assert all(third["low"] <= third["mean"] <= third["high"] for third in thirds)


def base_of(given: Study, name: str) -> np.ndarray:
    position = given.planned[int(name)].key.position
    return given.losses[str(given.of(arm="original", position=position))].ce


def test_the_median_absolute_difference_is_told_under_its_protocols_alone(given: Study, told: Summary) -> None:
    assert {row["median_abs_delta"] for row in told.rows} == {None}
    for protocol in ("p1", "p1-code"):
        row = one(given.told(protocol=protocol).rows, arm="rewritten", selection="all", position="last")
        at, original = (given.of(arm=arm, selection="all", position="last") for arm in ("rewritten", "original"))
        low, middle, high = interval(row, "median_abs_delta")
        assert middle == pytest.approx(np.median(np.abs(by_window(given, at) - by_window(given, original))))
        assert low < middle < high


def test_a_way_that_may_be_nothing_has_no_share(given: Study) -> None:
    """Mean ablation that costs what the coder costs: no share of it is given, and no bound relative to it."""
    losses = {
        name: replace(each, ce=given.losses[str(given.of(arm="coder", position=arm.key.position))].ce, kl=0 * each.kl)
        if (arm := given.planned[int(name)]).key.arm == "mean"
        else each
        for name, each in given.losses.items()
    }
    told = replace(given, losses=losses).told()
    for row in told.rows:
        assert (row["gap_closed"], row["gap_closed_low"], row["worst_over_mean"]) == (None, None, None)
        assert row["over_shuffled"] is None
    assert all(curve["area_share"] is None for curve in told.curves)
    assert all(isinstance(curve["area"], dict) for curve in told.curves)


def test_what_was_not_measured_is_nothing(given: Study) -> None:
    losses = {name: Losses(each.ce, each.kl) for name, each in given.losses.items()}
    for row in replace(given, losses=losses).told().rows:
        assert (row["kl_coder"], row["kl_coder_low"], row["agreement"], row["agreement_high"]) == (None,) * 4


# -- prompts that are left out ----------------------------------------------------------------------------------------


def test_figures_stand_with_and_without_the_easy_prompts(given: Study, told: Summary) -> None:
    filtered = given.told(least_base_loss=1.5)
    base = given.losses[str(given.of(arm="original", position="last"))].ce
    assert {row["n_left_out"] for row in told.rows} == {0}
    for row, plain in zip(filtered.rows, told.rows, strict=True):
        assert row["delta_ce_unfiltered"] == pytest.approx(plain["delta_ce"])
        assert row["delta_ce_unfiltered_low"] == pytest.approx(plain["delta_ce_low"])
        assert row["gap_closed_unfiltered"] == pytest.approx(plain["gap_closed"])
        assert row["kl_unfiltered"] == pytest.approx(plain["kl"])
        assert plain["delta_ce_unfiltered"] == plain["delta_ce"]
        if row["position"] == "last":
            assert row["n_left_out"] == (base < 1.5).sum() > 0
            assert row["n_contexts"] == (base >= 1.5).sum()
    one_row = one(filtered.rows, arm="rewritten", selection="all", position="last")
    assert one_row["delta_ce"] != pytest.approx(one_row["delta_ce_unfiltered"])
    assert filtered.notes["least_base_loss"] == 1.5


# -- invariances ------------------------------------------------------------------------------------------------------


def reordered(given: Study, order: np.ndarray) -> Study:
    """The same study with its windows in another order."""
    every = Windows(
        *(getattr(given.windows, name)[order] for name in ("tokens", "lengths", "document", "group", "start"))
    )
    starts = np.cumsum(given.windows.lengths) - given.windows.lengths
    spans = zip(starts[order].tolist(), given.windows.lengths[order].tolist(), strict=True)
    rows = np.concatenate([np.arange(start, start + length) for start, length in spans])
    losses = {}
    for name, each in given.losses.items():
        chosen = rows if given.planned[int(name)].key.position == "all" else order
        losses[name] = Losses(*(getattr(each, field)[chosen] for field in ("ce", "kl", "kl_coder", "agrees")))
    return replace(given, losses=losses, where=positions(every), windows=every)


def test_the_order_of_windows_and_documents_does_not_matter(given: Study, told: Summary) -> None:
    order = np.random.default_rng(0).permutation(len(given.windows))
    other = reordered(given, order).told()
    for first, second in zip(told.rows, other.rows, strict=True):
        for name, value in first.items():
            assert second[name] == (
                pytest.approx(value, abs=1e-9) if isinstance(value, float) else value
            ) or isinstance(value, dict | list), name


def test_documents_that_are_cut_into_other_windows_give_the_same_intervals() -> None:
    """What is resampled is the document group: how its positions are cut into windows moves no end of an interval."""
    cut = study()
    every = cut.windows
    first = np.flatnonzero(np.diff(every.group, prepend=-1))
    joined = Windows(
        np.ones((len(first), int(every.lengths.max()) * 6), dtype=np.int32),
        np.add.reduceat(every.lengths, first).astype(np.int32),
        every.document[first],
        every.group[first],
        every.start[first],
    )
    whole = replace(cut, where=positions(joined), windows=joined)
    for one_row, other in zip(cut.told(positions=("all",)).rows, whole.told(positions=("all",)).rows, strict=True):
        for name in ("delta_ce", "kl", "kl_coder", "over_mean", "gap_closed", "site_share"):
            for end in ("", "_low", "_high"):
                assert one_row[name + end] == pytest.approx(other[name + end]), name + end
        assert one_row["delta_ce_se"] == pytest.approx(other["delta_ce_se"])


def test_one_document_alone_has_no_intervals() -> None:
    with pytest.raises(SettingError, match="at least 2 document groups"):
        study(groups=1).told()


# -- random subsets ---------------------------------------------------------------------------------------------------


def test_random_subsets_are_told_together(given: Study, told: Summary) -> None:
    for fraction in FRACTIONS:
        key = {"arm": "rewritten", "selection": "sampled", "fraction": fraction, "position": "all"}
        parts = [one(told.rows, subset_seed=seed, **key) for seed in (0, 1)]
        pooled = one(told.over_subsets, **key)
        assert (pooled["subset_seed"], pooled["n_subsets"]) == (None, 2)
        assert {part["n_subsets"] for part in parts} == {1}
        for name in ("delta_ce", "over_mean", "ce", "kl", "agreement"):
            assert pooled[name] == pytest.approx(np.mean([number(part, name) for part in parts])), name
        floor = [one(told.rows, **{**key, "arm": "mean", "subset_seed": seed}) for seed in (0, 1)]
        coder = one(told.rows, arm="coder", position="all")
        over, under = (np.mean([number(each, "ce") for each in rows]) for rows in (parts, floor))
        assert pooled["gap_closed"] == pytest.approx((under - over) / (under - number(coder, "ce")))
        low, _, high = interval(pooled, "over_mean")
        narrow = [number(part, "over_mean_high") - number(part, "over_mean_low") for part in parts]
        assert high - low > 1.2 * max(narrow), "subsets that differ widen the interval"
    assert {row["selection"] for row in told.over_subsets} == {"sampled"}


def test_a_single_subset_is_not_told_twice() -> None:
    found = study(subsets=1).told()
    assert found.over_subsets == []
    assert {curve["n_subsets"] for curve in found.curves} == {1}


# -- curves -----------------------------------------------------------------------------------------------------------


def test_curves_run_from_the_smallest_fraction_to_all_latents(told: Summary) -> None:
    assert len({(curve["arm"], curve["selection"], curve["position"]) for curve in told.curves}) == len(told.curves)
    assert {curve["arm"] for curve in told.curves} == {"rewritten", "shuffled"}
    assert {curve["selection"] for curve in told.curves} == {"top", "sampled"}
    for curve in told.curves:
        assert curve["fractions"] == [*FRACTIONS, 1.0]
        columns = [curve[name] for name in ("band_low", "over_mean_low", "over_mean", "over_mean_high", "band_high")]
        assert all(isinstance(column, list) for column in columns)
        low, inner_low, middle, inner_high, high = np.array(columns)
        assert (low < middle).all()
        assert (high - low > 0.95 * (inner_high - inner_low)).all()
        assert (np.array(curve["bound"]) < high).all()
    sampled = one(told.curves, arm="rewritten", selection="sampled", position="all")
    assert sampled["n_subsets"] == 2


def test_the_area_and_the_worst_that_can_be_of_losses_without_noise() -> None:
    told = study(exact).told()
    for curve in told.curves:
        if curve["arm"] == "rewritten":
            assert curve["area"] == pytest.approx({"mean": 0.25, "low": 0.25, "high": 0.25})
            assert curve["area_share"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
            assert curve["bound"] == pytest.approx([-0.5 * fraction for fraction in (*FRACTIONS, 1.0)])
        else:
            assert curve["area"] == pytest.approx({"mean": 0.0, "low": 0.0, "high": 0.0}, abs=1e-12)
    worst = one(told.rows, arm="rewritten", selection="all", position="all")["worst_over_mean"]
    contrasts = 2 * (3 * len(FRACTIONS) + 1)  # positions; the top ones and two random subsets, and all latents
    assert worst == pytest.approx({"share": -0.125, "nats": -0.125, "contrasts": contrasts})
    assert headline(told.rows, "hurdle")["worst_over_mean"] == worst
    assert one(told.rows, arm="mean", selection="all", position="all")["worst_over_mean"] is None


def test_the_worst_is_no_better_than_any_single_bound(told: Summary) -> None:
    worst = one(told.rows, arm="rewritten", selection="all", position="last")["worst_over_mean"]
    assert isinstance(worst, dict)
    highest = max(number(row, "over_mean") for row in told.rows if row["arm"] == "rewritten")
    assert worst["nats"] > highest


def test_intervals_of_either_kind_follow_the_setting(given: Study, told: Summary) -> None:
    other = given.told(interval="bca")
    assert other.notes["interval"] == "bca"
    same = [row["delta_ce_low"] == plain["delta_ce_low"] for row, plain in zip(other.rows, told.rows, strict=True)]
    assert sum(same) < len(same) / 4
    for row, plain in zip(other.rows, told.rows, strict=True):
        assert row["delta_ce"] == plain["delta_ce"]


def test_notes_say_how_the_figures_were_made(told: Summary) -> None:
    assert told.notes["groups"] == len(np.unique(windows().group))
    assert (told.notes["resamples"], told.notes["level"]) == (400, 0.95)
    where = told.notes["positions"]
    assert isinstance(where, dict)
    assert set(where) == {"all", "last"}
    assert 2 < where["all"]["equal_groups"] < 14
    assert len(where["last"]["base_loss_thirds"]) == 2
