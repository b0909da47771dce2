import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrewrite.llm.rare import rare_loss, tilt, tilted

LABELS = [3, 1, 4]


@settings(max_examples=25)
@given(st.floats(0.001, 0.2), st.floats(0.05, 0.95))
def test_the_minimum_over_drawn_questions_is_the_share_in_the_text(natural: float, drawn: float) -> None:
    """Closed form: one logit for each label, expected counts for a sample; the minimum is at the text's shares."""
    tilts = torch.tensor(tilt(np.array([1 - drawn, drawn]), np.array([1 - natural, natural])))
    logit = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    share = torch.tensor([1 - drawn, drawn], dtype=torch.float64)
    for _ in range(60):
        loss = -(share * torch.log_softmax(logit + tilts, 0)).sum()
        (slope,) = torch.autograd.grad(loss, logit)
        p = torch.softmax(logit + tilts, 0)
        with torch.no_grad():
            logit[1] -= (slope[1] / (p[0] * p[1])).clamp(-1, 1)
    assert abs(torch.softmax(logit, 0)[1].item() - natural) < 1e-9


def test_without_a_tilt_it_is_cross_entropy_over_the_whole_vocabulary() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    answer = torch.tensor([0, 2, 1, 1, 0])
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS)[answer])
    assert torch.allclose(rare_loss(logits, LABELS, answer, torch.zeros(5, 3)), plain)


def test_a_tilt_moves_its_own_label_and_question_alone() -> None:
    logits = torch.zeros(2, 6)
    moved = tilted(logits, LABELS, torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, -1.0]]))
    assert moved[0].tolist() == [0, 2, 0, 1, 3, 0] and moved[1].tolist() == [0, 0, 0, 0, -1, 0]
    assert not logits.any()


def test_tilts_of_counts_are_those_of_shares_and_absent_kinds_have_none() -> None:
    assert np.allclose(tilt(np.array([50.0, 50]), np.array([990.0, 10])), np.log([0.5 / 0.99, 0.5 / 0.01]))
    assert tilt(np.array([5.0, 0]), np.array([100.0, 3])).tolist()[1] == 0
