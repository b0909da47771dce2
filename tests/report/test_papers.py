import math
from typing import Any

import pytest

from nlrewrite.report import figures, papers
from nlrewrite.report.facts import Facts
from nlrewrite.report.figure import Figure
from nlrewrite.report.page import page
from nlrewrite.report.papers import PAPERS, Run
from tests.report.reading import read

FRACTIONS = (0.1, 0.5)
CALIBRATORS = {"none": 3.0, "quantile-7": 0.5, "quantile-7-on-prompt": 0.45}


def row(
    arm: str, fraction: float, selection: str, value: float, seed: int | None = 0, **changes: Any
) -> dict[str, Any]:
    ends = {
        f"{name}{end}": scale * (value + shift)
        for name, scale in (("delta_ce", 1.0), ("median_abs_delta", 10.0))
        for end, shift in (("", 0.0), ("_low", -0.01), ("_high", 0.01))
    }
    named = {"arm": arm, "explanation": "rules" if arm == "rewritten" else "", "calibrator": "", "topk": "none"}
    where = {"fraction": fraction, "selection": selection, "subset_seed": seed, "position": "last"}
    return {**named, **where, **ends, "delta_ce_se": 0.002} | changes


def rows() -> list[dict[str, Any]]:
    found = [row("coder", 0.0, "all", 0.03), row("mean", 1.0, "all", 0.3), row("zero", 1.0, "all", 0.33)]
    for selection in ("top", "sampled"):
        for fraction in FRACTIONS:
            found += [
                row("mean", fraction, selection, 0.3 * fraction),
                row("zero", fraction, selection, 0.33 * fraction),
            ]
            for name, cost in CALIBRATORS.items():
                value = cost * fraction * (0.5 if selection == "top" else 1)
                found.append(row("rewritten", fraction, selection, value, calibrator=name, topk="values"))
    for name, cost in CALIBRATORS.items():
        found += [row("rewritten", 1.0, "all", cost, calibrator=name, topk=each) for each in ("none", "values")]
    return found


@pytest.fixture
def run(told: Facts) -> Run:
    trained = [{"arm": "rewritten", "share": 0.12, "low": 0.1, "high": 0.15, "censored": ""}]
    return Run({"arms": rows(), "equivalent_training": trained}, told)


def drawn(made: Figure | str) -> Figure:
    assert isinstance(made, Figure), made
    return made


def test_every_figure_of_the_papers_has_a_function_and_a_place_in_order(run: Run):
    found = papers.entries(run)
    assert [each.name for each in found] == list(PAPERS)
    assert set(PAPERS) == {
        *("p1-1", "p1-3", "p1-4", "p1-a1", "p1-a2", "p1-a3", "p1-a4", "p1-a5"),
        *("p2-2", "p2-3", "p2-4", "p2-a1", "p2-a2"),
    }
    for each in found:
        assert (each.figure is None) == bool(each.why), each.name
        assert each.figure is None or each.figure.name == each.name


def test_the_first_paper_shows_the_median_and_zero_ablation(run: Run):
    table = drawn(papers.p1_1(run)).table
    assert set(table["line"]) == {"best first", "at random", "at zero"}
    lines = {name: part.set_index("share")["median_abs_delta"] for name, part in table.groupby("line")}
    assert lines["best first"].to_dict() == pytest.approx({0.0: 0.3, 0.1: 0.25, 0.5: 1.25, 1.0: 5.0})
    assert lines["at random"][0.5] == pytest.approx(2.5)
    assert lines["at zero"].to_dict() == pytest.approx({0.0: 0.3, 0.1: 0.33, 0.5: 1.65, 1.0: 3.3})


def test_the_later_paper_shows_means_with_their_errors_and_mean_ablation(run: Run):
    figure = drawn(papers.p2_2(run))
    table = figure.table
    assert set(table["line"]) == {"best first", "at random", "at mean"}
    assert (table["delta_ce_high"] - table["delta_ce"]).to_numpy() == pytest.approx(0.002)
    assert table[table["line"] == "at mean"].set_index("share")["delta_ce"][0.5] == pytest.approx(0.15)
    assert "standard error" in figure.caption


def test_uncalibrated_and_on_prompt_predictions_are_figures_of_their_own(run: Run):
    raw, peeking = drawn(papers.p1_a1(run)), drawn(papers.p1_a2(run))
    assert "Calibrator: none" in raw.caption
    assert "Calibrator: quantile-7-on-prompt" in peeking.caption
    assert "go on in the table" in raw.caption, "thirty times the ablation does not fit"
    assert raw.table["median_abs_delta"].max() == pytest.approx(30)


def test_three_targets_stand_beside_each_other(run: Run):
    table = drawn(papers.p2_3(run)).table
    assert set(table["line"]) == {"uncalibrated", "normalised", "on the prompts", "at mean"}
    assert table.set_index(["line", "share"])["delta_ce"]["on the prompts", 0.5] == pytest.approx(0.45 * 0.5 * 0.5)


def test_random_subsets_that_were_pooled_are_one_line(run: Run):
    arms = run.results["arms"]
    more = [each | {"subset_seed": 1} for each in arms if each["selection"] == "sampled"]
    pooled = [
        row(
            **{k: each[k] for k in ("arm", "fraction", "selection")},
            value=9.0,
            seed=None,
            calibrator=each["calibrator"],
            topk=each["topk"],
        )
        for each in more
    ]
    several = drawn(papers.p2_2(Run({"arms": [*arms, *more]}, run.facts))).table
    assert set(several[several["line"] == "at random"]["draw"]) == {0, 1}
    one = drawn(papers.p2_2(Run({"arms": [*arms, *more], "over_subsets": pooled}, run.facts))).table
    assert set(one["draw"]) == {0}
    assert one.set_index(["line", "share"])["delta_ce"]["at random", 0.5] == 9.0


def test_what_a_run_lacks_is_said_and_not_drawn(run: Run):
    ours = [each for each in rows() if each["calibrator"] in ("", "none") or each["selection"] == "all"]
    lacking = Run({"arms": ours}, run.facts)
    for function in (papers.p1_1, papers.p1_a2, papers.p2_2, papers.p2_3):
        why = function(lacking)
        assert isinstance(why, str)
        assert "protocol" in why
    assert "checkpoints" in str(papers.p1_a5(lacking))
    assert "sample-size" in str(papers.p1_a3(lacking))
    only_top = [each for each in rows() if each["selection"] != "sampled"]
    assert "evaluate.selections" in str(papers.p1_1(Run({"arms": only_top}, run.facts)))


def test_a_transcoder_is_no_autoencoder(run: Run):
    assert "transcoder" in str(papers.p2_a2(run))
    site = dict(run.facts.site) | {"kind": "residual"}
    facts = Facts(**{name: getattr(run.facts, name) for name in run.facts.__dataclass_fields__} | {"site": site})
    assert drawn(papers.p2_a2(Run(run.results, facts))).name == "p2-a2"


def test_shares_of_training_are_drawn_with_their_ends(run: Run):
    figure = drawn(papers.p1_a5(run))
    assert figure.table.to_dict("records") == run.results["equivalent_training"]
    assert "0.120" in (read(figure.panels[0]).one("svg").attributes["aria-label"] or "")


def test_one_score_of_the_own_figure_is_a_figure(run: Run, told: Facts, with_gap: dict[str, Any]):
    import numpy as np
    import pandas as pd

    draws = np.linspace(0.05, 0.95, 60)
    measures = {f"{m}_{a}": draws for m in ("sensitivity", "specificity") for a in ("raw", "quantile")}
    of_latents = pd.DataFrame({"explained": np.ones(60, bool), **measures})
    own = figures.by_score(of_latents, pd.DataFrame({"detection_f1": draws, "fuzzing_f1": draws[::-1]}))
    assert own is not None
    whole = Run(run.results, told, own={"by-score": own})
    detection, fuzzing = drawn(papers.p1_4(whole)), drawn(papers.p1_a4(whole))
    assert set(detection.table["score"]) == {"detection_f1"}
    assert set(fuzzing.table["score"]) == {"fuzzing_f1"}
    assert detection.panels != fuzzing.panels
    found = {each.name: each for each in papers.entries(whole)}
    tree = read(page(with_gap, told, [own], [], list(found.values())))
    links = {a.attributes["href"] for a in tree.named("papers").all("a")}
    assert "#figure-by-score" in links, "the same drawing is not shown twice"
    assert not [node for node in tree.all() if node.attributes.get("id") == "figure-p1-4"]
    assert math.isfinite(float(detection.table["mean"].sum()))
