import numpy as np
import pytest

from nlrewrite.explain.asking import ACTIVE, SILENT, Drawing, EngineReader, context, line
from nlrewrite.explain.examples import Text
from nlrewrite.explain.refine import Asked, parts
from nlrewrite.language.prompts import prompts
from nlrewrite.language.template import filled, template
from nlrewrite.progress import Progress
from nlrewrite.questions import PromptSpec
from nlrewrite.seeds import generator
from tests.explain.asked import Scripted, tokenizer
from tests.explain.planted import WORDS, text

WHERE = text()
BOOK = Text(WHERE, WORDS)
TOKENIZER = tokenizer()
SIMULATE = prompts(template(filled(PromptSpec(name="simulate"), None)), TOKENIZER, "explanation", name="simulate")


@pytest.mark.parametrize("count", [1, 40, 500, 9000, 9600])
def test_drawn_cases_stand_for_the_whole_text(count: int) -> None:
    shown_P = parts(WHERE.group, 0)
    position = np.sort(generator(0, "active").choice(len(WHERE), count, replace=False))
    value = generator(0, "values").random(count).astype(np.float32) + 0.1
    cases = Drawing(WHERE.group, shown_P, 0).cases(3, position, value)
    dense = np.zeros(len(WHERE))
    dense[position] = value
    assert len(np.unique(cases.position)) == len(cases)
    assert (cases.truth == dense[cases.position]).all()
    assert (cases.shown == shown_P[cases.position]).all() and (cases.group == WHERE.group[cases.position]).all()
    for part, there in ((cases.shown, shown_P), (~cases.shown, ~shown_P)):
        for kind, all_, most in ((cases.truth > 0, dense > 0, ACTIVE), (cases.truth == 0, dense == 0, SILENT)):
            whole = int((there & all_).sum())
            assert int((part & kind).sum()) == min(most, whole)
            assert cases.weight[part & kind].sum() == pytest.approx(whole)


def test_draws_depend_on_the_latent() -> None:
    position, value = np.arange(0, 9000, 30), np.ones(300, dtype=np.float32)
    drawing = Drawing(WHERE.group, parts(WHERE.group, 0), 0)
    one, other, again = (drawing.cases(latent, position, value).position.tolist() for latent in (0, 1, 0))
    assert one == again != other


def test_a_context_ends_at_its_position_and_begins_with_the_text() -> None:
    position = int(np.flatnonzero(WHERE.offset == 3)[5])
    short = context(BOOK, position, 32)
    assert (len(short.tokens), short.first, short.at) == (4, position - 3, (3,))
    assert len(context(BOOK, position + 30, 8).tokens) == 8
    active = context(BOOK, position + 30, 8, value=1.0)
    assert line(SIMULATE, active, 1.0).endswith(" 9)")
    assert not line(SIMULATE, context(BOOK, position + 30, 8), 1.0).endswith(")")


def test_levels_are_expected_digits_and_missing_ones_are_nan() -> None:
    # of nine in ten the last digit, 9; the others share the rest
    engine = Scripted(TOKENIZER, chance=lambda prefix, suffix: None if "silence" in prefix[-400:] else 0.9)
    reader = EngineReader(engine, SIMULATE, BOOK, 8, Progress())
    asked = [Asked(0, "cats", np.array([50, 60, 70])), Asked(1, "silence", np.array([60, 90]))]
    first, second = reader.levels(asked)
    assert first == pytest.approx([0.9 * 9 + 0.1 / 9 * 36] * 3, abs=0.02)
    assert len(second) == 2 and np.isnan(second).all()
    assert engine.blocks == 2  # the sentence is the shared prefix
    assert reader.levels([]) == []
