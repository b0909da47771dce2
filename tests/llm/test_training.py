import hashlib

import numpy as np
import pytest
import torch

from nlrewrite.language.sentence import SILENT, Change, Place, Rule, write
from nlrewrite.llm import training
from nlrewrite.llm.judging import judge
from nlrewrite.llm.rare import rare_loss
from nlrewrite.llm.rows import last_logits, rows
from nlrewrite.llm.spelling import forms
from nlrewrite.llm.training import Material, fresh_model, schedule, train
from nlrewrite.progress import Progress
from nlrewrite.questions import TrainedReader
from tests.llm.small_readers import SPEC, TEXTS, material

CUTS, MATERIAL = material()


class Memory:
    """Work that stays in memory, and may be cut off."""

    def __init__(self, stop_after: int = 1 << 30) -> None:
        self.pieces: dict[str, bytes] = {}
        self.stop_after = stop_after

    def read(self, name: str) -> bytes | None:
        return self.pieces.get(name)

    def write(self, name: str, data: bytes) -> None:
        self.pieces[name] = data
        self.stop_after -= 1
        if not self.stop_after:
            raise KeyboardInterrupt


def bits(model: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def _short(request: pytest.FixtureRequest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "KEPT_EVERY", 5)
        patch.setattr(training, "JUDGED", 4)
        patch.setattr(training, "JUDGED_BY", 12)
        yield


@pytest.mark.parametrize("order", ["explanation", "context"])
def test_questions_are_the_ids_of_the_prompt_that_is_asked_later(order: str) -> None:
    _, asked = material(SPEC.model_copy(update={"order": order}))
    lesson = asked.teacher.lesson(3, 5)
    prefixes, suffixes = asked.questions([lesson], asked.window)
    where = asked.teacher.contexts.where
    found = [[*prefix, *suffix] for prefix, each in zip(prefixes, suffixes, strict=True) for suffix in each]
    assert len(found) == 5
    for ids, position in zip(found, lesson.position_C.tolist(), strict=True):
        first = position - min(int(where.offset[position]), asked.window - 1)
        shown = asked.prompts.shown([TEXTS[token] for token in where.token[first : position + 1]], [-1])
        assert ids == asked.prompts.whole(context=shown, explanation=lesson.sentence).tolist()


def test_training_gives_the_same_bits_cut_off_or_not_and_touches_no_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    whole = train(SPEC, MATERIAL, CUTS, Progress(), Memory())
    work = Memory(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        train(SPEC, MATERIAL, CUTS, Progress(), work)
    work.stop_after = 1 << 30
    resumed = train(SPEC, MATERIAL, CUTS, Progress(), work)
    assert bits(resumed.model) == bits(whole.model)
    assert resumed.judgement == whole.judgement
    assert [round(each["step"]) for each in resumed.curve] == [5, 10, 12]
    assert resumed.curve[-1] == whole.curve[-1]
    assert torch.equal(before, torch.random.get_rng_state())


def test_other_settings_give_other_weights() -> None:
    first = bits(train(SPEC, MATERIAL, CUTS, Progress()).model)
    for fields in ({"seed": 1}, {"steps": 13}, {"learning_rate": 1e-3}):
        spec = SPEC.model_copy(update=fields)
        cuts, other = material(spec)
        assert bits(train(spec, other, cuts, Progress()).model) != first


def test_an_untrained_reader_looks_from_a_marked_token_at_the_same_one_quoted() -> None:
    """In a matching head of the first layer the right quote gets the most attention for most tokens."""
    spec = TrainedReader(layers=1, width=128)
    model = fresh_model(spec, CUTS, [text for text in TEXTS if text])
    model.set_attn_implementation("eager")
    named = [text for text in TEXTS[1:] if text][:12]
    sentence = MATERIAL.prompts.prefix(explanation=write(Rule(tuple((text, 1) for text in named)))).tolist()
    right = 0
    for text in named:
        quoted, marked = (CUTS(form, add_special_tokens=False)["input_ids"][0] for form in forms(text))
        with torch.no_grad():
            heads = model.model(input_ids=torch.tensor([[*sentence, marked]]), output_attentions=True).attentions[0]
        right += sentence[int(heads[0, 0, -1, :-1].argmax())] == quoted
    assert right >= 9


def test_the_loss_falls_on_questions_it_is_taught() -> None:
    spec = TrainedReader(layers=1, width=64, steps=60, batch=32, held_out=0.2)
    cuts, asked = material(spec)
    first = fresh_model(spec, cuts, [text for text in TEXTS if text])
    after = train(spec, asked, cuts, Progress())
    stage = training.COURSE[0]
    lessons = [asked.teacher.lesson(number, 16, stage) for number in range(1000, 1008)]
    answer = torch.from_numpy(np.concatenate([lesson.digit_C for lesson in lessons]).astype(np.int64))
    tilt = torch.from_numpy(np.concatenate([lesson.tilt_CZ for lesson in lessons]))

    def loss(model: torch.nn.Module) -> float:
        with torch.no_grad():
            logits = last_logits(model, rows(*asked.questions(lessons, 1)))
        return rare_loss(logits, asked.prompts.labels, answer, tilt).item()

    assert loss(after.model) < 0.5 * loss(first)
    assert 0 <= after.judgement.auc <= 1 and after.judgement.sentences == 4


def test_the_control_knows_strengths_and_no_conditions() -> None:
    plain = Rule(((b" the", 5), (b" of", 9))).normal()
    changed = Rule(plain.strengths, (Change(Place(1, True), b" the", SILENT), Change(Place(8, True), 7, 2))).normal()
    lessons = [MATERIAL.teacher.about(rule, 60, np.random.default_rng(0)) for rule in (plain, changed)]
    knows, misses = (judge(training.by_strengths(MATERIAL, [lesson])) for lesson in lessons if lesson is not None)
    assert knows.auc == pytest.approx(1) and knows.explained > 0.95
    assert misses.auc_named < 1 and misses.explained < knows.explained


def test_a_context_is_shown_as_far_back_as_asked_and_never_beyond_its_window() -> None:
    where = MATERIAL.teacher.contexts.where
    assert len(MATERIAL.context(0, 9)) == 1 and len(MATERIAL.context(3, 9)) == 4
    assert len(MATERIAL.context(15, 9)) == 9 and len(MATERIAL.context(15, 2)) == 2
    assert where.offset[20] == 0 and len(MATERIAL.context(20, 9)) == 1
    assert isinstance(MATERIAL, Material)


def test_the_rate_rises_and_falls_and_the_course_covers_every_step() -> None:
    rates = [schedule(step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(1) and rates[0] == pytest.approx(0.02) and rates[-1] < 0.031
    assert np.argmax(rates) in (49, 50) and np.all(np.diff(rates[50:]) < 0)
    assert all(0 < schedule(step, 3) <= 1 for step in range(3))
    assert [stage.until for stage in training.COURSE] == sorted(stage.until for stage in training.COURSE)
    assert training.COURSE[-1].until == 1
