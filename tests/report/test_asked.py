from typing import Any

from nlrewrite.report.asked import Asked, Quizzed, section

SPEC = {"order": "explanation", "window": 9, "prompt": {"name": "reader"}, "flavour": "renormalised"}
READER = {"kind": "trained", "layers": 2, "width": 64}
TAUGHT: dict[str, Any] = {
    "tune": {"steps": 300},
    "tuned_on": {"latents": 900},
    "before": {"auc": 0.8461, "sentences": 100},
    "after": {"auc": 0.8412, "sentences": 100},
}


def test_a_reader_that_was_taught_further_is_told_with_how_it_read_what_it_was_not_taught_by() -> None:
    plain, taught = Asked(READER, SPEC, ()), Asked(READER, SPEC, (), tuned=TAUGHT)
    assert "tuned" not in plain.told() and taught.told() == {**plain.told(), "tuned": TAUGHT}
    assert "taught further" not in str(section(plain))
    assert "300 steps on the true digits of 900 latents on the explain split" in str(section(taught))
    assert "Of 100 latents that it was not taught by" in str(section(taught))
    assert "(AUC 0.841, and 0.846 before)" in str(section(taught))
    unknown = Asked(READER, SPEC, (), tuned={**TAUGHT, "before": {"auc": None, "sentences": 1}})
    assert "(AUC 0.841, and unknown before)" in str(section(unknown))


def test_failed_questions_of_the_quiz_are_counted_by_scorer() -> None:
    quizzes = (Quizzed("detection", 90, 80, unparseable=6, refused=3, transport=1, skipped=0),)
    asked = Asked(READER, SPEC, (), quizzes=quizzes)
    page = str(section(asked))
    assert "Questions of the quiz" in page and "detection" in page
    assert "6 (7%)" in page and "3 (3%)" in page and "1 (1%)" in page
    assert asked.told()["quizzes"][0]["unparseable"] == 6
    assert "Questions of the quiz" not in str(section(Asked(READER, SPEC, ())))


def test_what_a_screen_left_out_is_said() -> None:
    screened = {**SPEC, "screen": "exit", "screen_layer": 2, "screen_recall": 0.95}
    assert "a probe behind 2 layers of it decided" in str(section(Asked(READER, screened, ())))
    assert "a smaller reader decided" in str(section(Asked(READER, {**screened, "screen": "cascade"}, ())))
    assert "decided" not in str(section(Asked(READER, {**SPEC, "screen": "none"}, ())))


def test_who_wrote_is_escaped_and_outcomes_are_told_in_words() -> None:
    hostile = {"kind": "served", "model": "<script>alert(1)</script>"}
    page = str(section(Asked(hostile, SPEC, (), writer=hostile, sentences={"ok": 3, "skipped": 1})))
    assert "<script>" not in page and "3 written, 1 not asked about" in page
