from dataclasses import replace
from typing import Any

import pytest

from nlrewrite.report import figures, tables, wording
from nlrewrite.report.facts import PLACES, Facts
from nlrewrite.report.method import method
from nlrewrite.report.page import quoted_row
from nlrewrite.report.wording import arm_name, beside, carried, caveats, group_of, number, percent, percent_interval
from tests.report.conftest import Made


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.7227, "72%"), (1.0, "100%"), (0.0056, "0.6%"), (-0.0056, "−0.6%"), (0.0001, "0%"), (-0.0001, "0%"), (0, "0%"),
     (-0.204, "−20%"), (0.0099, "1%"), (1.102, "110%"), (None, "–")],
)  # fmt: skip
def test_shares_are_told_in_percent(share: float | None, said: str):
    assert percent(share) == said


def test_numbers_and_intervals():
    assert (number(0.11891), number(-0.5, 1), number(None)) == ("0.119", "−0.5", "–")
    assert (percent_interval(-0.001, 0.02), percent_interval(None, None)) == ("[−0.1, 2]", "")


def test_the_headline_stands_beside_its_controls(told: Facts, with_gap: dict[str, Any]):
    headline = with_gap["headline"]
    said = wording.result(told, headline)
    assert "72% [70, 74]" in said
    assert f"{told.sentences} English sentences" in said
    assert "the MLP of layer 1 of a 2-layer model" in said
    controls = beside(headline)
    for figure in ("21%", "94%", "0.6%", "86%"):
        assert figure in controls
    assert "51 points [48, 54] above the table of single tokens" in controls
    assert "22 points [20, 24] below the table of token pairs" in controls


def test_what_cannot_be_told_apart_is_not_said_to_be_better(with_gap: dict[str, Any]):
    unsure = {**with_gap["headline"], "over_token_lookup": {"mean": 0.02, "low": -0.01, "high": 0.05}}
    assert "not told apart from the table of single tokens (−1 to 5 points)" in beside(unsure)


def test_a_share_of_the_site_is_the_product_of_its_parts(told: Facts, with_gap: dict[str, Any]):
    said = carried(with_gap["headline"], told)
    assert "carry 77%" in said
    assert "account for 55%" in said  # 0.77 x 0.72


def test_a_missing_gap_is_said_to_be_missing(told: Facts, with_gap: dict[str, Any]):
    headline = {**with_gap["headline"], "gap_closed": None, "low": None, "high": None}
    assert "cannot be said" in wording.result(told, headline)
    assert "%" not in wording.result(told, headline) + beside(headline)
    assert "no gap to close" in carried(headline, told)


def test_the_careful_reader_is_told_what_is_left_out(made: Made, told: Facts, with_gap: dict[str, Any]):
    headline, row = with_gap["headline"], quoted_row(with_gap)
    said = " ".join(caveats(told, headline, row))
    assert "The model is tiny" in said
    assert f"{row['n_documents']} documents ({row['n_groups']} groups" in said
    assert "not by a language model" in said
    few = replace(told, outcomes={"ok": 10, "unexplained": 1}, latents=11)
    assert "1 latent of 11 have no readable sentence" not in said
    assert "1 latent of 11" in " ".join(caveats(few, headline, row))
    complete = replace(told, outcomes={"ok": 11}, latents=11)
    assert "readable sentence" not in " ".join(caveats(complete, headline, row))


def test_who_reads_is_told_and_that_gates_come_first(told: Facts, with_gap: dict[str, Any]):
    headline, row = {**with_gap["headline"], "simulator": "reader"}, quoted_row(with_gap)
    said = " ".join(caveats(told, headline, row))
    assert "read by a language model, which sees the sentence and the text" in said and "gate" not in said
    behind = replace(told, simulate={**told.simulate, "gate": True})
    assert "only where a latent's lexical gate is open" in " ".join(caveats(behind, headline, row))
    assert "lexical gate" not in " ".join(caveats(behind, with_gap["headline"], row))
    assert arm_name({"arm": "rewritten", "simulator": "reader"})[1].endswith("by a language model")
    assert arm_name({"arm": "rewritten", "explanation": "gated"})[1].endswith("by rules")


@pytest.mark.parametrize(
    ("kind", "skip", "place", "words"),
    [
        ("mlp", True, "the MLP of layer 3", "a skip transcoder with"),
        ("mlp", False, "the MLP of layer 3", "a transcoder with"),
        ("residual", False, "the residual stream after layer 3", "a sparse autoencoder with"),
        ("mlp-output", False, "the MLP output of layer 3", "a sparse autoencoder with"),
    ],
)
def test_every_site_has_its_words(told: Facts, kind: str, skip: bool, place: str, words: str):
    site = {"kind": kind, "layer": 3}
    facts = replace(told, site=site, place=PLACES[kind].format(3), coder={**told.coder, "site": site, "skip": skip})
    assert wording.title(facts).startswith(place[0].upper() + place[1:])
    assert words in method(facts, "a.module.path")[0]
    assert "a.module.path" in method(facts, "a.module.path")[0]


def test_a_large_or_foreign_model_is_not_called_tiny(told: Facts, with_gap: dict[str, Any]):
    for training in (None, {**(told.training or {}), "parameters": 10**9}):
        said = caveats(replace(told, training=training), with_gap["headline"], quoted_row(with_gap))
        assert not any("tiny" in each for each in said)


def test_a_coder_from_elsewhere_may_have_seen_the_text(told: Facts, with_gap: dict[str, Any]):
    elsewhere = replace(told, coder={"kind": "folder", "site": told.site, "width": 64, "k": 4})
    for facts, seen in ((told, False), (elsewhere, True)):
        said = " ".join(caveats(facts, with_gap["headline"], quoted_row(with_gap)))
        assert ("may have been trained on them" in said) == seen


def test_a_site_where_context_is_not_needed_is_said_to_prove_little(told: Facts, with_gap: dict[str, Any]):
    headline, row = with_gap["headline"], quoted_row(with_gap)
    assert "proves little" not in " ".join(caveats(told, headline, row))  # 21% of 86%
    said = " ".join(caveats(told, {**headline, "token_lookup": 0.6, "oracle": 0.8}, row))
    assert "closes 75% of what the on/off mask does" in said
    assert "proves little" in said
    missing = dict.fromkeys(("gap_closed", "token_lookup", "oracle"))
    assert "proves little" not in " ".join(caveats(told, {**headline, **missing}, row))


def test_training_is_told_with_its_bounds():
    rewritten = {"arm": "rewritten", "share": 0.68, "low": 0.66, "high": 0.7, "censored": ""}
    coder = {"arm": "coder", "share": 1.0, "low": 0.99, "high": 1.0, "censored": "above"}
    said = wording.as_training([coder, rewritten])
    assert "68% [66, 70] of its training steps" in said
    assert "the coder 100% or more" in said
    assert wording.as_training([coder]) == wording.as_training([]) == ""


def test_unknown_arms_keep_their_name():
    row = {"arm": "one <new> arm", "explanation": "", "topk": "none"}
    assert arm_name(row) == ("one <new> arm", "")
    assert group_of(row) == "Others"
    assert group_of({"arm": "oracle"}) == "Controls"
    assert group_of({"arm": "rewritten", "explanation": "gated"}) == "Behind lexical gates"
    assert group_of({"arm": "rewritten", "explanation": "by-rules"}) == "Rewritten in sentences"


def test_rewritten_arms_are_told_apart():
    row = {"arm": "rewritten", "explanation": "rules", "topk": "none"}
    about = {arm_name(row | change)[1] for change in ({}, {"explanation": "rules-4"}, {"topk": "values"})}
    assert about == {
        "only sentences and the text are read",
        "sentences of at most 4 quotes",
        "only the top k by values are kept",
    }


def test_an_error_of_any_size_has_figures_that_count() -> None:
    assert [wording.figures(each) for each in (None, 134.42, 9.876, 0.00123)] == ["–", "134.4", "9.88", "0.00123"]


def test_a_control_under_a_topk_keeps_its_name() -> None:
    said = arm_name({"arm": "shuffled", "topk": "values"})[1]
    assert said == "every latent reads another one's sentence; only the top k by values are kept"
    assert arm_name({"arm": "rewritten", "topk": "values"})[1] == "only the top k by values are kept"


def test_a_calibrator_that_a_protocol_fixes_is_not_said_to_be_chosen(told: Facts) -> None:
    assert "(chosen)" in str(tables.calibrators(told))
    some = [each for each in told.calibration["calibrators"] if each["calibrator"] != "quantile-7"]
    fixed = {"calibrator": "quantile-7", "information": "marginals", "cross_fitted_error": 9.0}
    fitted = {**told.calibration, "calibrators": [*some, fixed]}
    said = str(tables.calibrators(replace(told, calibration=fitted, evaluate={**told.evaluate, "protocol": "p1"})))
    assert "quantile-7 (the protocol" in said
    assert "(chosen)" not in said


def test_a_coder_from_elsewhere_is_told_by_its_record(told: Facts) -> None:
    spec = {key: value for key, value in told.coder.items() if key not in ("skip", "steps")} | {"kind": "hub"}
    record = {
        "kind": "transcoder",
        "source": "some/coders@abc/x",
        "format": "sparsify",
        "data": "the Pile",
        "fvu": 0.25,
    }
    facts = replace(told, coder=spec, coder_training={}, coder_record=record)
    said = method(facts, "a.module.path")[0]
    assert "a transcoder with" in said
    assert "leaves 25% of the variance unexplained, and – of its latents" in said
    assert said.endswith("The coder comes from some/coders@abc/x, trained on the Pile, in the format of sparsify.")
    assert "Site and coder come from the spec" in said
    assert "comes from" not in method(told, "a.module.path")[0]
    with_skip = replace(facts, coder_record=record | {"kind": "skip-transcoder"})
    shares = {"coder_share": 0.8, "gap_closed": 0.5}
    assert "The rest is the skip term" in wording.carried(shares, with_skip)
    assert "The rest is the bias" in wording.carried(shares, facts)
    assert figures.training(replace(facts, training=None)) is None


def test_the_end_of_a_coders_curve_is_told_where_there_is_one(told: Facts) -> None:
    old = {"curve": [{"step": 0, "fvu": 1.0}, {"step": 50, "fvu": 0.5}], "fvu": 0.5, "live_share": 1.0}
    drawn = figures.training(replace(told, coder_training=old))
    assert drawn is not None and drawn.caption.endswith("the coder leaves 50% of the site's variance unexplained.")
    new = old | {"curve": [{"step": 50, "fvu": 0.5, "l0": 16.04, "dead_share": 0.125, "tokens": 9}]}
    drawn = figures.training(replace(told, coder_training=new))
    assert drawn is not None and drawn.caption.endswith(
        "with 16.0 latents active on a token and 12% of all latents dead."
    )


@pytest.mark.parametrize(
    ("activation", "form", "l0", "words"),
    [
        ("topk", {"activation": "topk", "k": 4}, 4.0, ", 4 of them active on a token, reads its input"),
        ("topk", {"activation": "topk", "k": 32}, 28.31, ", at most 32 and on average 28.3 active on a token, reads"),
        ("batchtopk", {"activation": "jumprelu", "k": 4}, 3.91, ", on average 3.9 of them active on a token, reads"),
        ("jumprelu", {"activation": "jumprelu", "k": 26}, 26.3, ", on average 26.3 of them active on a token, reads"),
        ("relu", {"activation": "relu", "k": 0}, 1234.5, ", on average 1,234 of them active on a token, reads"),
    ],
)
def test_active_latents_are_a_number_or_a_mean(told: Facts, activation: str, form: dict, l0: float, words: str) -> None:
    spec = {**told.coder, "activation": activation, "k": 4}
    said = method(replace(told, coder=spec, coder_form=form, coder_record={"l0": l0}), "a.path")[0]
    assert words in said
    given = "k" if activation in ("topk", "batchtopk") else "penalty"
    assert f"Site, width and {given} come from the spec" in said
