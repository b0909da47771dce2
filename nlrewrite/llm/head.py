"""From the hidden state at the end of a question to the probabilities of its labels.

In: hidden states behind the final norm, the head's weight, token ids of the labels. Out: their log-probabilities, the
log of their total probability under the whole vocabulary if that is asked for, and whether each is among the TOP
likeliest tokens. Logits are float32 whatever the model's dtype; the vocabulary is taken in blocks, so that no array of
[questions, vocabulary] is ever held. Invariant: labels and vocabulary are read off the same products.
"""

import torch
from torch import Tensor, nn

from nlrewrite.llm.engine import TOP
from nlrewrite.llm.packing import EVEN

ROWS, ENTRIES = 1024, 1 << 24
"""Questions, and logits, at a time."""


def scores(
    hidden_ND: Tensor, head: nn.Linear, labels: tuple[int, ...], *, mass: bool, top: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """float32 [N, K] that add up to one over the labels, log of the mass [N], and bool [N, K]."""
    weight_VD: Tensor = head.weight
    fitting = ENTRIES // len(weight_VD) if weight_VD.dtype == torch.float32 else ROWS
    rows = min(max(fitting, ROWS // 16), ROWS)  # as many as let the head's own product take the whole vocabulary
    count = len(hidden_ND)
    hidden_ND = nn.functional.pad(hidden_ND, (0, 0, 0, -count % EVEN))
    found = [_block(rows_ND, head, labels, mass, top) for rows_ND in hidden_ND.split(rows)]
    logp, logmass, among = (torch.cat(parts)[:count] for parts in zip(*found, strict=True))
    return logp, logmass if mass else None, among if top else None


def _block(
    hidden_ND: Tensor, head: nn.Linear, labels: tuple[int, ...], mass: bool, top: bool
) -> tuple[Tensor, Tensor, Tensor]:
    weight_VD: Tensor = head.weight
    label_K = torch.tensor(labels, device=hidden_ND.device)
    if not (mass or top):
        logits_NK = hidden_ND.float() @ weight_VD[label_K].float().T
        nothing = logits_NK.new_empty(0)
        return torch.log_softmax(logits_NK, dim=-1), nothing, nothing
    logits_NK = hidden_ND.new_empty((len(hidden_ND), len(labels)), dtype=torch.float32)
    logsum_N = torch.full((len(hidden_ND),), -torch.inf, device=hidden_ND.device)
    highest_NT = logits_NK.new_full((len(hidden_ND), TOP), -torch.inf)
    width = max(ENTRIES // len(hidden_ND), 1)
    for start in range(0, len(weight_VD), width):
        stop = min(start + width, len(weight_VD))
        whole = stop - start == len(weight_VD) and weight_VD.dtype == torch.float32
        logits_NV = head(hidden_ND) if whole else hidden_ND.float() @ weight_VD[start:stop].float().T
        inside_K = (label_K >= start) & (label_K < stop)
        logits_NK[:, inside_K] = logits_NV[:, label_K[inside_K] - start]
        if mass:
            logsum_N = torch.logaddexp(logsum_N, torch.logsumexp(logits_NV, dim=-1))
        if top:
            likeliest = torch.cat([highest_NT, logits_NV.topk(min(TOP, logits_NV.shape[1])).values], dim=1)
            highest_NT = likeliest.topk(TOP).values
    logp_NK = torch.log_softmax(logits_NK, dim=-1)
    logmass_N = torch.logsumexp(logits_NK, dim=-1) - logsum_N
    return logp_NK, logmass_N, logits_NK >= highest_NT[:, -1:]


def logits(hidden_ND: Tensor, head: nn.Linear) -> Tensor:
    """float32 [N, V]."""
    weight_VD: Tensor = head.weight
    return head(hidden_ND) if weight_VD.dtype == torch.float32 else hidden_ND.float() @ weight_VD.float().T
