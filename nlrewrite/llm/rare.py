"""The loss for answers that are rare in the text and common among the questions.

In: logits, the ids of the labels, the true label of each question, and the tilt: for each question and label the log
of how much more often such a question with this label is drawn than it stands in the text. Out: a loss. Invariant: what
minimises it are the probabilities that hold in the text: p_drawn(label | x) is p_text(label | x) exp(tilt), made to add
up to one, so the tilt is added to the logits while training and left out when asking.
"""

from collections.abc import Sequence

import numpy as np
import torch


def tilted(logits_NV: torch.Tensor, labels: Sequence[int], tilt_NK: torch.Tensor) -> torch.Tensor:
    """The logits under the way in which questions were drawn."""
    columns_K = torch.tensor(list(labels), device=logits_NV.device)
    return logits_NV.index_add(1, columns_K, tilt_NK.to(logits_NV))


def rare_loss(
    logits_NV: torch.Tensor, labels: Sequence[int], answer_N: torch.Tensor, tilt_NK: torch.Tensor
) -> torch.Tensor:
    """Mean cross entropy of the true labels over the whole vocabulary, so that the labels get its mass too."""
    columns_K = torch.tensor(list(labels), device=logits_NV.device)
    adjusted_NV = tilted(logits_NV, labels, tilt_NK)
    return torch.nn.functional.cross_entropy(adjusted_NV.float(), columns_K[answer_N.to(columns_K.device)])


def tilt(drawn: np.ndarray, natural: np.ndarray) -> np.ndarray:
    """log(drawn / natural) of shares or counts; 0 where there is none of a kind, for none is asked about."""
    there = (drawn > 0) & (natural > 0)
    shares = drawn / max(drawn.sum(), 1e-30), natural / max(natural.sum(), 1e-30)
    return np.where(there, np.log(np.where(there, shares[0], 1)) - np.log(np.where(there, shares[1], 1)), 0.0)
