from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.activations import statistics
from nlrewrite.activations.pairs import Active
from nlrewrite.seeds import generator
from nlrewrite.specs import ActivationsSpec
from nlrewrite.subject import batches
from nlrewrite.text.positions import Positions
from tests.evaluate.planted import windows

LATENTS = 9


def active(positions: int = 200, k: int = 3, seed: int = 0) -> Active:
    """Latent 8 never fires, latent 7 once."""
    draws = generator(seed, "active")
    latents = np.stack([draws.permutation(7)[:k] for _ in range(positions)]).astype(np.int32)
    values = (draws.gamma(2.0, 1.0, (positions, k)) * (draws.random((positions, k)) < 0.7)).astype(np.float32)
    latents[11, 0], values[11, 0] = 7, 0.5
    return Active(latents, values)


def dense(found: Active, latents: int = LATENTS) -> np.ndarray:
    table = np.zeros((len(found.values), latents), dtype=np.float32)
    np.put_along_axis(table, found.latents, found.values, axis=1)
    return table


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 5))
def test_grouping_by_latent_loses_nothing(positions: int, k: int, seed: int) -> None:
    draws = generator(seed, "grouping")
    latents = np.stack([draws.permutation(7)[:k] for _ in range(positions)]).astype(np.int32)
    values = (draws.random((positions, k)) * (draws.random((positions, k)) < 0.5)).astype(np.float32)
    grouped = Active(latents, values).by_latent(9)
    table = np.zeros((positions, 9), dtype=np.float32)
    for latent in range(9):
        position, value = grouped.of(latent)
        assert (np.diff(position) > 0).all()
        assert (value > 0).all()
        table[position, latent] = value
    assert (table == dense(Active(latents, values))).all()
    assert grouped.bounds[-1] == len(grouped.value) == (values > 0).sum()


def test_statistics_are_those_of_the_dense_table(tmp_path: Path) -> None:
    found = active()
    statistics.write_latents(found.by_latent(LATENTS), 200, LATENTS, tmp_path)
    rows, table = pd.read_parquet(tmp_path / "latents.parquet"), dense(found)
    assert rows["latent"].tolist() == list(range(LATENTS))
    assert rows["count"].tolist() == (table > 0).sum(0).tolist()
    assert rows["frequency"].to_numpy() == pytest.approx((table > 0).mean(0))
    assert rows["mean"].to_numpy() == pytest.approx(table.mean(0), rel=1e-5)
    assert rows["mean_square"].to_numpy() == pytest.approx(np.square(table).mean(0), rel=1e-5)
    assert rows["max"].to_numpy() == pytest.approx(table.max(0))
    for latent in range(8):
        firing = table[table[:, latent] > 0, latent]
        assert rows["mean_active"][latent] == pytest.approx(firing.mean(), rel=1e-5)
        for share in statistics.QUANTILES:
            assert rows[f"q{int(100 * share):02d}"][latent] == pytest.approx(np.quantile(firing, share), rel=1e-5)
    assert rows["count"][7] == 1
    assert rows.drop(columns="latent").iloc[8].tolist() == [0] * 12


@pytest.fixture(scope="module")
def where() -> Positions:
    window, offset = np.divmod(np.arange(200, dtype=np.int32), np.int32(8))
    return Positions(window, offset, offset, window)


def examples(where: Positions, out: Path, found: Active | None = None, **fields: int) -> pd.DataFrame:
    spec = ActivationsSpec(**fields)
    statistics.write_examples((found or active()).by_latent(LATENTS), where, spec, LATENTS, out)
    return pd.read_parquet(out / "examples.parquet")


def test_examples_are_stored_activations_from_their_decile(where: Positions, tmp_path: Path) -> None:
    rows, table = examples(where, tmp_path, examples=2), dense(active())
    assert rows["value"].to_numpy().tolist() == table[rows["position"], rows["latent"]].tolist()
    assert (rows["window"] == where.window[rows["position"]]).all()
    assert (rows["offset"] == where.offset[rows["position"]]).all()
    assert not rows.duplicated(["latent", "position"]).any()
    for latent in range(7):
        weakest_first = np.array_split(np.sort(table[table[:, latent] > 0, latent])[::-1], 10)[::-1]
        mine = rows[rows["latent"] == latent]
        assert mine.groupby("decile").size().tolist() == [2] * 10
        for decile, value in zip(mine["decile"], mine["value"], strict=True):
            assert value in weakest_first[decile]
    assert rows["latent"].is_monotonic_increasing
    assert rows[rows["latent"] == 7]["value"].tolist() == [0.5]
    assert 8 not in rows["latent"].tolist()


def test_deciles_come_strongest_first(where: Positions, tmp_path: Path) -> None:
    mine = examples(where, tmp_path, examples=100)
    mine = mine[mine["latent"] == 0]
    assert mine["decile"].is_monotonic_decreasing
    assert len(mine) == (dense(active())[:, 0] > 0).sum()
    lowest = mine.groupby("decile")["value"].min()
    highest = mine.groupby("decile")["value"].max()
    assert (highest.to_numpy()[:-1] <= lowest.to_numpy()[1:]).all()


def test_examples_depend_on_the_seed_and_the_latent_alone(where: Positions, tmp_path: Path) -> None:
    first, again = examples(where, tmp_path), examples(where, tmp_path)
    assert first.equals(again)
    assert not first.equals(examples(where, tmp_path, seed=1))
    found = active()
    others = Active(found.latents, np.where(found.latents == 3, found.values * 2, found.values))
    changed = examples(where, tmp_path, others)
    assert (
        changed[changed["latent"] != 3]
        .reset_index(drop=True)
        .equals(first[first["latent"] != 3].reset_index(drop=True))
    )


def test_no_examples_and_no_activations_are_empty_tables(where: Positions, tmp_path: Path) -> None:
    assert len(examples(where, tmp_path, examples=0)) == 0
    silent = Active(np.zeros((200, 1), np.int32), np.zeros((200, 1), np.float32))
    rows = examples(where, tmp_path, silent)
    assert len(rows) == 0
    assert list(rows.columns) == ["latent", "decile", "position", "window", "offset", "value"]
    statistics.write_latents(silent.by_latent(LATENTS), 200, LATENTS, tmp_path)
    assert pd.read_parquet(tmp_path / "latents.parquet")["count"].tolist() == [0] * LATENTS


def test_tables_of_equal_columns_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        statistics.write_table({"a": np.arange(5), "b": np.array(["x", "y", "", "é", "🙂"])}, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_windows_are_batched_whole_and_padded_to_the_longest() -> None:
    every = windows((9, 4, 12, 7, 12))
    for tokens, count in ((1, 5), (24, 3), (36, 2), (1000, 1)):
        parts = [every[rows] for rows in batches.batches(every, tokens)]
        assert len(parts) == count
        assert np.concatenate([part.lengths for part in parts]).tolist() == every.lengths.tolist()
    part = every[:2]
    assert batches.padded(part).tolist() == part.tokens[:, :9].tolist()
    assert batches.inside(part).sum(1).tolist() == [9, 4]
    assert batches.inside(part)[1].tolist() == [True] * 4 + [False] * 5
