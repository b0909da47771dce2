from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nlrewrite.activations.statistics import write_table
from nlrewrite.errors import SettingError
from nlrewrite.evaluate.losses import Losses
from nlrewrite.evaluate.summarise import tell
from nlrewrite.evaluate.tally import columns, read, tally
from nlrewrite.specs import EvaluateSpec
from tests.evaluate.study import Study, nothing, study


@pytest.fixture(scope="module")
def given() -> Study:
    return study()


def test_sums_are_those_of_the_positions_that_count(given: Study) -> None:
    base = given.losses[str(given.of(arm="original", position="all"))].ce
    least = float(np.quantile(base, 0.3))
    found = tally(given.planned, given.losses, "all", given.where, given.windows, least)
    kept = base >= least
    assert found.n_left_out == (~kept).sum() > 0
    assert found.positions_W.sum() == kept.sum()
    at = found.arms.index(given.of(arm="mean", selection="all", position="all"))
    losses = given.losses[str(found.arms[at])]
    assert losses.kl_coder is not None
    assert losses.agrees is not None
    for window in range(len(given.windows)):
        mine = given.where.window == window
        assert found.ce[at, window] == pytest.approx(losses.ce[mine & kept].sum())
        assert found.kl_coder[at, window] == pytest.approx(losses.kl_coder[mine & kept].sum())
        assert found.agrees[at, window] == losses.agrees[mine & kept].sum()
        assert found.ce_left_out[at, window] == pytest.approx(losses.ce[mine & ~kept].sum())
        assert found.kl_left_out[at, window] == pytest.approx(losses.kl[mine & ~kept].sum())


def test_only_the_unpatched_loss_decides_what_counts(given: Study) -> None:
    changed = {
        name: losses if given.planned[int(name)].key.arm == "original" else replace(losses, ce=losses.ce - 5)
        for name, losses in given.losses.items()
    }
    first, second = (
        tally(given.planned, each, "last", given.where, given.windows, 1.5) for each in (given.losses, changed)
    )
    assert first.left_out_W.tolist() == second.left_out_W.tolist()
    assert first.n_left_out > 0
    patched = list(given.planned)
    patched[given.of(arm="original", position="last")] = replace(
        patched[given.of(arm="original", position="last")], write=nothing
    )
    with pytest.raises(AssertionError, match="unpatched subject"):
        tally(patched, given.losses, "last", given.where, given.windows, 1.5)


def test_the_table_on_disk_gives_every_figure_again(given: Study, tmp_path: Path) -> None:
    spec = EvaluateSpec(resamples=300, least_base_loss=0.8, protocol="p1")
    first = given.told(resamples=300, least_base_loss=0.8, protocol="p1")
    write_table(first.sums, tmp_path / "losses.parquet")
    table = pd.read_parquet(tmp_path / "losses.parquet")
    assert list(table.columns) == [
        "arm", "window", "document", "group", "positions", "left_out", "ce", "kl", "kl_coder", "agrees", "ce_left_out",
        "kl_left_out",
    ]  # fmt: skip
    again = tell(spec, given.planned, read({name: table[name].to_numpy() for name in table}, given.planned))
    assert (again.rows, again.over_subsets) == (first.rows, first.over_subsets)
    assert (again.curves, again.notes) == (first.curves, first.notes)


def test_what_is_read_is_what_was_written(given: Study) -> None:
    found = {
        position: tally(given.planned, given.losses, position, given.where, given.windows, 1.0)
        for position in ("all", "last")
    }
    again = read(columns(list(found.values())), given.planned)
    for position, each in found.items():
        for name, value in vars(each).items():
            assert np.array_equal(value, vars(again[position])[name], equal_nan=name != "arms"), name


def test_a_loss_that_is_no_number_is_refused_by_its_arm(given: Study) -> None:
    at = given.of(arm="rewritten", selection="all", position="last")
    ce = given.losses[str(at)].ce.copy()
    ce[[2, 5]] = [np.nan, np.inf]
    broken = {**given.losses, str(at): Losses(ce, ce)}
    with pytest.raises(SettingError, match=r"\(rewritten, rules, hurdle, none\) is none at 2 of"):
        tally(given.planned, broken, "last", given.where, given.windows, 0.0)


def test_means_of_arms_stand_behind_them(given: Study) -> None:
    found = tally(given.planned, given.losses, "all", given.where, given.windows, 0.0)
    more = found.with_means([(0, 1), (2,)])
    assert more.ce[-2] == pytest.approx((found.ce[0] + found.ce[1]) / 2)
    assert more.agrees[-1] == pytest.approx(found.agrees[2])
    assert more.arms[-2:] == (found.arms[0], found.arms[2])
    assert found.with_means([]) is found
