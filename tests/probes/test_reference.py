"""Real calibrators on the planted model, at a quarter of its latents and the same base rate."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nlrewrite.probes.planted import Design
from nlrewrite.probes.reference import Bench, Row, Setting, appendix_b

PRINTED = json.loads((Path(__file__).parents[1] / "golden" / "planted.json").read_text())
DESIGN = Design(latents=512, k=2, width=64, vocabulary=128)
SEEDS = (0, 1, 2)


@cache
def bench(seed: int, tau: float = 0.0) -> Bench:
    return Bench(Setting(tau=tau), DESIGN, seed)


@cache
def row(name: str, seed: int, tau: float = 0.0, topk: str = "none") -> Row:
    each = bench(seed, tau)
    return each.row("", name, each.kept(each.predicted(each.fitted(name)), topk), topk)


def test_the_calibrator_alone_turns_the_sign() -> None:
    six, seven = (row(name, 0, topk="values").kl for name in ("quantile-6", "quantile-7"))
    assert row("hurdle", 0).kl < 0.95 < 1.2 < six < seven
    assert row("quantile-6", 0, topk="values").error < 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_a_few_cases_of_each_latent_are_as_good_as_thousands_of_random_contexts(seed: int) -> None:
    each = bench(seed)
    fitted, queries = each.by_cases("hurdle", 50, 200, seed=seed)
    found = each.row("", "cases", each.predicted(fitted)).kl
    assert abs(found - row("hurdle", seed).kl) < 0.01
    assert queries <= 250 * DESIGN.latents == each.setting.contexts * DESIGN.latents / 16


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_centring_takes_away_what_a_prompt_does(seed: int) -> None:
    without, moved, centred = row("hurdle", seed).kl, row("hurdle", seed, 1.0).kl, row("hurdle@centred", seed, 1.0).kl
    assert moved - without > 0.03
    assert abs(centred - without) < 0.01


def test_centring_costs_nothing_where_prompts_do_nothing() -> None:
    assert abs(row("hurdle@centred", 0).kl - row("hurdle", 0).kl) < 0.005


@pytest.mark.parametrize("seed", SEEDS)
def test_the_hurdle_is_about_as_good_as_knowing_the_slope(seed: int) -> None:
    each = bench(seed)
    best = each.row("", "known slope", each.known_slope())
    assert abs(best.squared - row("hurdle", seed).squared) < 0.03


def test_every_printed_row_has_its_row() -> None:
    small = Design(latents=64, k=2, width=16, vocabulary=32, known_contexts=2000)
    rows = appendix_b(Setting(contexts=800, report=200), small)
    names = {table: {f"{row.predictor}/{row.topk}" for row in rows if row.table == table} for table in PRINTED}
    assert set(PRINTED["full replacement"]) <= names["full replacement"]
    assert set(PRINTED["less information"]) <= names["less information"]
    assert set(PRINTED["mixed replacement"]["columns"]) == names["mixed replacement"]
    mixed = [row for row in rows if row.table == "mixed replacement"]
    assert {(row.order, f"{row.fraction:g}") for row in mixed} == {
        (order, fraction) for order in ("random", "best d'", "best gain") for fraction in ("0.1", "0.25", "0.5", "0.75")
    }
    assert all(np.isfinite([row.kl, row.squared, row.error]).all() for row in rows)
    loud = [row.evicted for row in mixed if row.predictor == "raw"]
    quiet = [row.evicted for row in mixed if row.predictor == "hurdle@centred"]
    assert min(loud) > 0.7 and max(quiet) < 0.15 and {row.evicted for row in mixed if row.topk == "none"} == {0.0}
