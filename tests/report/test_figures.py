import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nlrewrite.report import figures
from nlrewrite.report.drawing import VARIABLES, draw, power
from nlrewrite.report.facts import Facts
from nlrewrite.report.figure import Figure
from nlrewrite.report.figures import distributions, fractions, lengths, training
from nlrewrite.score.build import read_scores
from nlrewrite.score.diagnostics import binned
from tests.report.conftest import Made
from tests.report.reading import read


@pytest.fixture
def drawn(made: Made, told: Facts, with_gap: dict[str, Any]) -> list[Figure]:
    evaluation = made.inputs["evaluation"]
    return figures.figures(
        with_gap["arms"],
        with_gap["headline"],
        json.loads(evaluation.path("spread.json").read_text()),
        pd.read_parquet(evaluation.path("latents.parquet")),
        read_scores(made.inputs["scores"]),
        told,
    )


def test_all_figures_are_drawn_and_described(drawn: list[Figure]):
    assert [figure.name for figure in drawn] == ["fractions", "lengths", "distributions", "by-score", "training"]
    assert [len(figure.panels) for figure in drawn] == [2, 1, 1, 2, 2]
    for panel in (panel for figure in drawn for panel in figure.panels):
        svg = read(panel).one("svg")
        assert svg.attributes["role"] == "img"
        assert len(svg.attributes["aria-label"] or "") > 30
        assert svg.all("path")
        assert svg.all("text")


def test_drawings_take_their_colours_from_the_page(drawn: list[Figure]):
    together = "".join(panel for figure in drawn for panel in figure.panels)
    assert not re.search(r"#[0-9a-f]{6}\b", together.replace('href="#', "")), "a colour of its own"
    for variable in VARIABLES.values():
        assert f"var({variable})" in together, variable


def test_drawings_bring_no_names_fonts_or_references(drawn: list[Figure]):
    together = "".join(panel for figure in drawn for panel in figure.panels)
    assert "://" not in together
    assert "font-family" not in together
    assert "<style" not in together
    ids = re.findall(r' id="([^"]+)"', together)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:href="|url\()#([\w.-]+)', together)) == set(ids)


def test_the_same_data_give_the_same_bytes():
    def plot(axes: Any) -> None:
        axes.plot([1, 2], [3, 4])
        axes.set_title("a </svg><script>$x$ & b")

    one, two = (draw("same", "described", plot) for _ in range(2))
    assert one == two
    assert read(one).one("svg").text.count("a </svg><script>$x$ & b") == 1


def test_lines_end_where_all_latents_are_replaced(drawn: list[Figure], with_gap: dict[str, Any]):
    headline = with_gap["headline"]
    row = next(
        row
        for row in with_gap["arms"]
        if (row["arm"], row["explanation"], row["calibrator"], row["selection"], row["topk"], row["position"])
        == ("rewritten", "rules", headline["calibrator"], "all", "none", "all")
    )
    assert f"rewritten {row['delta_ce']:.3f}" in drawn[0].panels[0]


def test_lengths_show_every_limit(drawn: list[Figure]):
    assert "2 quotes 72%, 4 quotes 72%" in drawn[1].panels[0]


def test_what_the_data_do_not_allow_is_left_out(told: Facts, with_gap: dict[str, Any]):
    rows, headline = with_gap["arms"], with_gap["headline"]
    assert fractions([row for row in rows if row["selection"] == "all"], headline) is None
    assert lengths([row for row in rows if row["explanation"] != "rules-2"], headline, told) is None
    nothing = [row | {"gap_closed": None} for row in rows]
    assert lengths(nothing, headline, told) is None


def test_a_subject_that_was_not_trained_here_has_no_curve(told: Facts):
    figure = training(replace(told, training=None))
    assert figure is not None
    assert len(figure.panels) == 1
    assert "subject" not in figure.caption


def test_distributions_need_no_particular_calibrator():
    edges = [0.0, *np.geomspace(1e-4, 2, 44).tolist()]
    counts = [90.0] + [0.0] * 30 + [1.0] * 13
    figure = distributions({"edges": edges, "chosen": "a & <b>", "counts": {"true": counts, "a & <b>": counts}})
    assert figure is not None
    assert "a & <b> (used)" in read(figure.panels[0]).one("svg").text
    assert "in truth 87%" in figure.caption  # 90 of 103


def test_bins_have_the_mean_of_their_latents():
    score = np.array([0.81, 0.85, 0.89, 1.0, 0.95, 0.99, 0.1, np.nan, 0.85])
    value = np.array([0.2, 0.4, 0.6, 1.0, 1.0, 1.0, 0.5, 0.7, np.nan])
    centre, mean, half, latents = binned(score, value)
    assert centre == pytest.approx([0.85, 0.95])
    assert mean == pytest.approx([0.4, 1.0])
    assert half == pytest.approx([1.96 * 0.2 / np.sqrt(3), 0.0])
    assert latents.tolist() == [3, 3]


def test_bins_without_latents_are_empty():
    assert [len(part) for part in binned(np.array([]), np.array([]))] == [0, 0, 0, 0]


def test_powers_are_written_as_powers():
    assert [power(value) for value in (1e-7, 0.1, 1, 10, 1e4)] == ["10⁻⁷", "10⁻¹", "1", "10¹", "10⁴"]
