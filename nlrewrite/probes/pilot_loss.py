"""From squared error to loss: how the loss reads an error at each context, tried on rewritings that cost nothing.

In: a subject with its coder and contexts of one split. Out: gradients of log-probabilities at the site, by which errors
are weighed; and `Translation`, how far the weighed error was off for free rewritings of *all* latents whose loss can be
measured. Invariant: no simulator is asked, and nothing of the report split is read.

A small error e adds 1/2 E (g . e)^2 to the divergence, g the gradient of the log-probability of a token that the model
draws. Errors of a rewriting are not small: gradients are taken where mean ablation has put the site, and what the form
then misses is seen on two kinds of rewritings: truths of which a share is left out at random, whose errors are each
latent's own, and the mean of each token, whose errors all latents make at the same contexts.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from nlrewrite.evaluate.losses import Where, Write, losses
from nlrewrite.probes.upstream import Upstream
from nlrewrite.seeds import generator, torch_generator
from nlrewrite.subject import sites
from nlrewrite.subject.batches import batches, padded
from nlrewrite.text.positions import Positions
from nlrewrite.text.tokens import Windows

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from nlrewrite.progress import Progress

KEPT = (0.6, 0.8)
"""Shares of the activations that are left in the thinned truths."""
CHUNK = 1 << 25


@dataclass(frozen=True)
class Prompts:
    """Contexts as windows that are cut behind them, and where in these each context ends."""

    windows: Windows
    row_C: np.ndarray
    column_C: np.ndarray


def prompts(up: Upstream, windows: Windows, where: Positions, contexts: np.ndarray) -> Prompts:
    """A window for each context; one for all that stand in it, where no later position reads the site."""
    if up.in_last_layer:
        rows, row_C = np.unique(where.window[contexts], return_inverse=True)
        return Prompts(windows[rows], row_C, where.offset[contexts])
    cut = windows[where.window[contexts]]
    cut = replace(cut, lengths=(where.offset[contexts] + 1).astype(np.int32))
    return Prompts(cut, np.arange(len(contexts)), where.offset[contexts])


def gradients(
    up: Upstream, asked: Prompts, written_CE: np.ndarray, count: int, seed: int, progress: "Progress"
) -> np.ndarray:
    """Of log-probabilities of `count` drawn tokens at each context, with this written there: [C, R, E]."""
    import torch

    found = np.empty((len(asked.row_C), count, written_CE.shape[1]), dtype=np.float32)
    draws = torch_generator(seed, "pilot", "labels")
    for parameter in up.model.parameters():
        parameter.requires_grad_(False)
    with progress.stage("how the loss reads errors", len(asked.windows)) as advance:
        for rows in batches(asked.windows, up.batch_tokens):
            part = asked.windows[rows]
            inside = np.flatnonzero((asked.row_C >= rows.start) & (asked.row_C < rows.stop))
            at = tuple(
                torch.from_numpy(each.astype(np.int64))
                for each in (asked.row_C[inside] - rows.start, asked.column_C[inside])
            )
            written = torch.from_numpy(np.ascontiguousarray(written_CE[inside]))
            found[inside] = _gradients(up, padded(part), at, written, count, draws)
            advance(len(part))
    return found


def _gradients(
    up: Upstream, ids: "Tensor", at: "tuple[Tensor, ...]", written: "Tensor", count: int, draws: "Generator"
) -> np.ndarray:
    import torch

    leaf: list[Tensor] = []

    def put(x: "Tensor", y: "Tensor") -> "Tensor":
        leaf.append((up.coder.beside(x[at]) + written).detach().requires_grad_(True))
        full = y.clone()
        full[at] = leaf[-1]
        return full

    with torch.enable_grad(), sites.patched(up.model, up.located, put):
        told = torch.log_softmax(up.model(input_ids=ids, use_cache=False).logits[at].float(), dim=-1)
    label = torch.multinomial(told.detach().exp(), count, replacement=True, generator=draws)
    found = np.empty((len(written), count, written.shape[1]), dtype=np.float32)
    for number in range(count):
        chosen = told.gather(1, label[:, number, None]).sum()
        (each,) = torch.autograd.grad(chosen, leaf[-1], retain_graph=number + 1 < count)
        found[:, number] = each.numpy()
    return found


@dataclass(frozen=True)
class Translation:
    """Log of (added loss / weighed error), both as shares of mean ablation's, over the free rewritings."""

    shift: float
    spread: float
    tried: dict[str, tuple[float, float]]
    """By rewriting: its weighed error, and its added loss."""
    mean_loss: float
    """Nats that mean ablation adds to the coder."""
    mean_error: float = 0.0
    """Standard error of those, over document groups."""

    @property
    def tells(self) -> bool:
        """Whether there is a gap to speak of."""
        return self.mean_loss > 2 * self.mean_error


def translation(up: Upstream, rows: np.ndarray, count: int, seed: int, progress: "Progress") -> Translation:
    part = up.calibrate
    where = part.where
    truth_CL = sparse.csr_matrix(part.truth_PL[rows])
    true_CE = np.asarray(truth_CL @ up.dec_LE, dtype=np.float32)
    mean_L = up.mean_L.astype(np.float32)
    off_CE = mean_L @ up.dec_LE - true_CE
    asked = prompts(up, part.windows, where, rows)
    reads_CRE = gradients(up, asked, true_CE + off_CE, count, seed, progress)
    values: dict[str, np.ndarray | sparse.csr_matrix] = {}
    rest: dict[str, np.ndarray] = {}
    for kept in KEPT:
        name = f"{kept:.0%} of the activations"
        values[name], rest[name] = thinned(truth_CL, up.known.rate, mean_L, kept, seed)
    values["the token's mean"] = by_tokens(part.truth_PL, where.token, where.group, rows, mean_L)
    rest["the token's mean"] = np.zeros(up.latents, dtype=np.float32)
    written = {"coder": true_CE, "mean": true_CE + off_CE}
    for name, value in values.items():
        written[name] = np.asarray(value @ up.dec_LE, dtype=np.float32) + rest[name] @ up.dec_LE

    loss_C = added(up, asked, written, progress)
    ce = {name: float(each.mean(dtype=np.float64)) for name, each in loss_C.items()}
    base = ce["mean"] - ce["coder"]
    off_G = np.bincount(np.unique(where.group[rows], return_inverse=True)[1], loss_C["mean"] - loss_C["coder"] - base)
    error = float(np.sqrt(np.square(off_G).sum()) / len(rows))
    if base <= 2 * error:
        return Translation(0.0, 0.0, {}, base, error)
    tried: dict[str, tuple[float, float]] = {}
    quiet = float(np.square(off_CE, dtype=np.float64).sum())
    off_square = _alone(reads_CRE, up.dec_LE, mean_L, truth_CL, None)
    for name, value in values.items():
        left = float(np.square(written[name] - true_CE, dtype=np.float64).sum()) / quiet
        wrong_square = _alone(reads_CRE, up.dec_LE, rest[name], truth_CL, value)
        louder = (wrong_square[0] / off_square[0]) / (wrong_square[1] / off_square[1])
        tried[name] = left * louder, (ce[name] - ce["coder"]) / base
    logs = np.array([np.log(max(added, 1e-3) / weighed) for weighed, added in tried.values()])
    kinds = np.array([logs[: len(KEPT)].mean(), *logs[len(KEPT) :]])
    return Translation(float(kinds.mean()), float(np.abs(np.diff(kinds)).max() / 2), tried, base, error)


def added(up: Upstream, asked: Prompts, written: dict[str, np.ndarray], progress: "Progress") -> dict[str, np.ndarray]:
    """Losses at the contexts with each of these written there, and nowhere else that is read."""
    import torch

    starts = np.cumsum(asked.windows.lengths) - asked.windows.lengths
    ends = starts[asked.row_C] + asked.column_C
    last = len(asked.row_C) == len(asked.windows) and bool((asked.column_C + 1 == asked.windows.lengths).all())

    def arm(written_CE: np.ndarray) -> "tuple[Where, Write | None]":
        def write(at: np.ndarray, x_ND: "Tensor", y_NE: "Tensor") -> "Tensor":
            place = np.minimum(np.searchsorted(ends, at), len(ends) - 1)
            here = ends[place] == at
            found = y_NE.clone()
            put = torch.from_numpy(np.ascontiguousarray(written_CE[place[here]]))
            found[torch.from_numpy(here)] = up.coder.beside(x_ND[torch.from_numpy(here)]) + put
            return found

        return "last" if last else "all", write

    arms = {name: arm(each) for name, each in written.items()}
    measured = losses(up.model, up.located, asked.windows, arms, up.batch_tokens, progress)
    return {name: each.ce if last else each.ce[ends] for name, each in measured.items()}


def thinned(
    truth_CL: sparse.csr_matrix, rate_L: np.ndarray, mean_L: np.ndarray, kept: float, seed: int
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """A share of the activations as they are, and elsewhere what is then to be expected: (what is added, the rest)."""
    rest_L = (mean_L * (1 - kept) / np.maximum(1 - rate_L * kept, 1e-9)).astype(np.float32)
    stays = generator(seed, "pilot", "thinned", round(1000 * kept)).random(truth_CL.nnz) < kept
    added = truth_CL.copy()
    added.data = np.where(stays, added.data - rest_L[added.indices], 0).astype(np.float32)
    added.eliminate_zeros()
    return added, rest_L


def by_tokens(
    truth_PL: sparse.csr_matrix, token_P: np.ndarray, group_P: np.ndarray, rows: np.ndarray, mean_L: np.ndarray
) -> np.ndarray:
    """Mean activations of each context's token, over the other half of the documents: [C, L]."""
    size = int(token_P.max()) + 1
    half_P = np.unique(group_P, return_inverse=True)[1] % 2
    found = np.empty((len(rows), len(mean_L)), dtype=np.float32)
    for half in range(2):
        of_token = sparse.csr_matrix(
            ((half_P != half).astype(np.float32), (token_P, np.arange(len(token_P)))), shape=(size, len(token_P))
        )
        chosen = np.flatnonzero(half_P[rows] == half)
        tokens, back = np.unique(token_P[rows[chosen]], return_inverse=True)
        sums = np.asarray((of_token[tokens] @ truth_PL).todense()) + mean_L
        seen = np.asarray(of_token[tokens].sum(1)).ravel() + 1
        found[chosen] = (sums / seen[:, None])[back]
    return found


def _alone(
    reads_CRE: np.ndarray,
    dec_LE: np.ndarray,
    rest_L: np.ndarray,
    truth_CL: sparse.csr_matrix,
    value: "np.ndarray | sparse.csr_matrix | None",
) -> tuple[float, float]:
    """Squared errors of every latent by itself, as the loss reads them and in the output, summed over contexts."""
    loud, quiet, square_L = 0.0, 0.0, np.square(dec_LE).sum(1)
    step = max(1, CHUNK // (dec_LE.shape[0] * reads_CRE.shape[1]))
    for start in range(0, len(reads_CRE), step):
        at = slice(start, start + step)
        wrong = rest_L - truth_CL[at].toarray()
        if value is not None:
            wrong = wrong + (value[at].toarray() if isinstance(value, sparse.csr_matrix) else value[at])
        wrong = np.square(wrong)
        heard = np.square(reads_CRE[at] @ dec_LE.T).mean(1)
        loud += float((heard * wrong).sum(dtype=np.float64))
        quiet += float((wrong @ square_L).sum(dtype=np.float64))
    return loud, quiet
