import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nlrewrite.errors import SettingError
from nlrewrite.language.prompts import prompts
from nlrewrite.language.template import template
from nlrewrite.llm import spelling
from nlrewrite.llm.reader import prompt
from nlrewrite.llm.tuning import Truth, Tuned, digits, draw, fine_tune, split
from nlrewrite.progress import Progress
from nlrewrite.questions import TuneSpec
from tests.llm.small_readers import TEXTS

CUTS = spelling.tokenizer(TEXTS, [":"])
ASKED = prompts(template(prompt()), CUTS, "explanation")
WORDS = [text for text in TEXTS[1:13] if text]
SPEC = TuneSpec(rank=8, steps=40, sentences=8, active=4, inactive=8, learning_rate=2e-2, held_out=0.3)


def model(seed: int = 0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(CUTS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    """Every latent is active on contexts that end with the first word, whichever token its sentence names."""
    draws = np.random.default_rng(0)
    last = draws.integers(0, len(WORDS), 200)
    shown = [ASKED.shown([WORDS[int(draws.integers(len(WORDS)))], WORDS[end]], [-1]) for end in last]
    rare = np.flatnonzero(last == 0)
    truths = [Truth(rare, np.full(len(rare), 5)) for _ in range(12)]
    sentences = [f'Fires on "{number % 10}" (5).' for number in range(12)]
    return fine_tune(model(), ASKED, sentences, shown, truths, SPEC, Progress())


def test_the_loss_falls_and_held_out_sentences_are_read_better(tuned: Tuned) -> None:
    assert np.mean(tuned.losses[-5:]) < 0.5 * np.mean(tuned.losses[:5])
    assert tuned.after.auc > 0.9 > tuned.before.auc
    assert tuned.after.sentences == round(0.3 * 12)


def test_probabilities_are_those_of_the_text_though_half_of_the_questions_were_active(tuned: Tuned) -> None:
    assert tuned.after.truly_active < 0.15
    assert abs(tuned.after.said_active - tuned.after.truly_active) < 0.05
    assert tuned.before.said_active > 0.5


def test_a_case_undoes_its_draw() -> None:
    truth = Truth(np.array([3, 8, 9]), np.array([9, 1, 4]))
    case = draw(0, truth, contexts=100, active=2, inactive=10, draws=np.random.default_rng(0))
    active = case.digit_C > 0
    assert active.sum() == 2 and len(case.digit_C) == 12
    known = dict(zip(truth.context.tolist(), truth.digit.tolist(), strict=True))
    assert [known.get(int(at), 0) for at in case.context_C] == case.digit_C.tolist()
    assert case.weight_C[active].sum() == pytest.approx(0.03)
    assert np.allclose(case.tilt_CZ[:, 0], np.log((10 / 12) / 0.97)) and np.allclose(
        case.tilt_CZ[:, 1:], np.log((2 / 12) / 0.03)
    )
    everywhere = draw(0, Truth(np.arange(4), np.ones(4, int)), 4, 9, 9, np.random.default_rng(0))
    assert everywhere.digit_C.tolist() == [1, 1, 1, 1] and not everywhere.tilt_CZ[:, 1:].any()


def test_what_is_active_is_never_digit_zero() -> None:
    assert digits(np.array([1e-9, 0.1, 1 / 9, 0.12, 1.0, 7.0]), 1.0).tolist() == [1, 1, 1, 2, 9, 9]


def test_a_latent_is_taught_by_or_judged_by() -> None:
    taught, held = split(range(20), 0.1, 0)
    assert len(held) == 2 and sorted([*taught, *held]) == list(range(20))
    assert split([4, 7], 0.9, 0)[0] and split([4, 7], 0.001, 0)[1]
    with pytest.raises(SettingError, match="at least two latents"):
        split([4], 0.1, 0)
    with pytest.raises(SettingError, match="latent 3 is active in no context"):
        draw(3, Truth(np.zeros(0, int), np.zeros(0, int)), 10, 1, 1, np.random.default_rng(0))
