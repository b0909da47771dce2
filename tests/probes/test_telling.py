"""Tables of what probes found."""

from typing import Any

from nlrewrite.probes import telling


def ends(name: str, value: float | None) -> dict[str, float | None]:
    return {name: value, f"{name}_low": value and value - 0.1, f"{name}_high": value and value + 0.1}


def told(name: str, *rows: dict[str, Any]) -> str:
    return telling.tables({"probes": {name: {"rows": rows}}})[name]


def test_nothing_asked_nothing_told() -> None:
    assert telling.tables({"arms": []}) == {}


def test_the_ladder_tells_effects_and_why_there_is_none() -> None:
    rung = {"simulator": "rules", "change": "a change", "fraction": 1.0, "rung": 3, "note": ""}
    figures = ends("above_mean", 0.5) | ends("gap_closed", None)
    moved = rung | figures | ends("effect", -0.2)
    still = rung | figures | {"effect": 0.0, "effect_low": 0.0, "effect_high": 0.0, "note": "it cannot matter"}
    text = told("ladder", moved, still, moved | {"fraction": 0.5, "change": "hidden"})
    assert "-0.2000 [-0.3000, -0.1000]" in text
    assert "it cannot matter" in text
    assert "hidden" not in text


def test_qualities_and_sizes_are_named() -> None:
    figures = {"calibrator": "hurdle", **ends("gap_closed", 0.3)}
    errors = {"error_ratio": 0.8, "error_ratio_in_theory": None}
    flags = {"kind": "flags", "specificity": 0.999, "auc": None}
    score = {"kind": "score", "specificity": None, "auc": 0.84}
    text = told("requirement", figures | errors | flags, figures | errors | score)
    assert "| specificity 0.999 | hurdle" in text
    assert "| AUC 0.84 " in text
    size = {"simulator": "rules", "contexts": 4000, "questions": 60.2, **figures}
    text = told("sample-size", size | {"active": None}, size | {"active": 10.0, "inactive": 50.0})
    assert "4,000 at random" in text
    assert "10 active, 50 not" in text
