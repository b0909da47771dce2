from typing import Any

import numpy as np
import pandas as pd
import pytest

from nlrewrite.report import reliability
from nlrewrite.seeds import generator
from tests.report.reading import read

COUNT = {"mean": 10.0, "q05": 5.0, "q25": 8.0, "q50": 10.0, "q75": 12.0, "q95": 15.0}


def diagnosed() -> dict[str, Any]:
    cells = [
        {"from": 10.0**-k, "to": 10.0 ** (1 - k), "predicted": 3 * 10.0**-k, "observed": 2 * 10.0**-k, "n": 1e4}
        for k in range(1, 5)
    ]
    rare = {"from": 1e-6, "to": 1e-5, "predicted": 5e-6, "observed": 0.3, "n": 3.0}

    def calibrator(role: str, skill: float) -> dict[str, Any]:
        return {
            **{"role": role, "probability": "predicted", "expected_active": COUNT, "brier_skill": skill},
            **{"reliability": [rare, *cells], "r2": {"mean": 0.4}},
        }

    named = {"none": calibrator("raw", -3.0), "a <b>": calibrator("chosen", 0.45)}
    return {"k": 16, "truly_active": COUNT | {"mean": 15.9}, "chosen": "a <b>", "calibrators": named}


def test_predictions_stand_beside_the_truth() -> None:
    figure = reliability.diagnosed(diagnosed())
    assert figure is not None
    left, right = (read(panel).one("svg") for panel in figure.panels)
    assert {"none", "a <b>"} <= {each.text for each in left.all("text")}
    assert "truly active 15.9, none 10.0" in (right.attributes["aria-label"] or "")
    assert "none −3.00, a <b> 0.45" in figure.caption
    assert len(figure.table) == 2 * 5 + 3


def test_a_bin_of_a_few_cases_is_in_the_table_alone() -> None:
    assert not reliability._drawn({"observed": 0.3, "predicted": 5e-6, "n": 3.0})
    figure = reliability.diagnosed(diagnosed())
    assert figure is not None
    assert "10⁻⁶" not in read(figure.panels[0]).one("svg").text


def test_without_calibrators_nothing_is_drawn() -> None:
    assert reliability.diagnosed(None) is None
    assert reliability.diagnosed(diagnosed() | {"calibrators": {}}) is None


def tables(latents: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    draws = generator(0, "explained")
    promised = draws.random(latents)
    r2 = np.clip(promised + 0.05 * draws.standard_normal(latents), -2, 1)
    told = {"latent": np.arange(latents), "r2_chosen": r2, "energy_of_deviations": draws.random(latents)}
    return pd.DataFrame(told), pd.DataFrame({"explained_by_flags": promised, "mcc2": promised})


def test_promised_and_reached_are_told_with_their_correlation() -> None:
    told, scores = tables(500)
    figure = reliability.explained(told, scores, diagnosed())
    assert figure is not None
    assert "correlation 0.9" in figure.caption or "correlation 1.0" in figure.caption
    assert "40%" in figure.caption
    by_panel = dict(iter(figure.table.groupby("panel")))
    assert len(by_panel["promised"]) == reliability.MOST
    assert by_panel["promised"]["energy"].min() > told["energy_of_deviations"].quantile(0.3)
    reached = by_panel["reached"].set_index("at_least")
    assert reached["share_of_latents"].iloc[0] == 1
    half = reached.index[np.argmin(abs(reached.index - 0.5))]
    assert reached["share_of_latents"][half] == pytest.approx((told["r2_chosen"] >= half).mean())


def test_two_latents_are_no_figure() -> None:
    assert reliability.explained(*tables(2), None) is None
    told, scores = tables(5)
    assert reliability.explained(told.drop(columns="r2_chosen"), scores, None) is None


def test_latents_that_are_all_alike_are_drawn() -> None:
    told, scores = tables(5)
    figure = reliability.explained(told.assign(r2_chosen=0.5), scores.assign(explained_by_flags=0.25), None)
    assert figure is not None
    assert "correlation 0.00" in figure.caption
