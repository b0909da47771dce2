"""A coder while it learns: its parameters, its loss on a batch with all gradients, and what it remembers of batches.

In: activations (x, y) of a batch, or this process's part of it. Out: the loss and, in the end, a `Coder`. Invariant:
the gradients are those of the formulae in docs/coders.md, to rounding, whichever way they are computed; memory is a few
tokens x width and one chunk of rows x latents; the same calls give the same bits.
"""

from typing import Any

import torch
from torch import Tensor

from nlrewrite.coders import choosing, initial, losses, ops
from nlrewrite.coders.choosing import Pairs
from nlrewrite.coders.form import Coder
from nlrewrite.coders.losses import Loss
from nlrewrite.coders.ranks import ALONE, Ranks
from nlrewrite.errors import CorruptArtifact
from nlrewrite.specs import CoderSpec

MEMORY = 0.1  # weight of the newest batch in a running mean, which must not lag behind a short training
UNKNOWN = -1.0  # a running mean before the first batch
GUESS = 0.7  # share of the running threshold that a batch's own one is first taken to exceed


class Learned:
    """y_hat = W_dec' act(W_enc x + b_enc) + W_skip x + b_dec, with x - b_dec for x in the encoder if tied."""

    @classmethod
    def initial(cls, spec: CoderSpec, x_ND: Tensor, y_NE: Tensor) -> "Learned":
        """Where training starts, on the device of the activations."""
        return cls(spec, initial.weights(spec, x_ND, y_NE))

    def __init__(self, spec: CoderSpec, weights: dict[str, Tensor]) -> None:
        self.spec = spec
        self.weights = {name: tensor.detach().float().clone().requires_grad_(True) for name, tensor in weights.items()}
        enc_LD = self.weights["enc"]
        self._memory = {
            "since": torch.zeros(spec.width, dtype=torch.int64, device=enc_LD.device),
            "running_threshold": enc_LD.new_full((), UNKNOWN).detach(),
            "running_active": enc_LD.new_full((), UNKNOWN).detach(),
        }
        self._dtype = torch.bfloat16 if spec.precision == "bfloat16" else torch.float32

    def parameters(self) -> list[Tensor]:
        return list(self.weights.values())

    def loss(self, x_ND: Tensor, y_NE: Tensor, step: int, ranks: Ranks = ALONE) -> Loss:
        """The loss of the batch of which x and y are this process's part; any leading dimensions.

        Counts the batch: latents that were active in it, tokens since they were, running means.
        """
        x_ND, y_NE = self._flat(x_ND, y_NE)
        count = int(ranks.total(torch.tensor(len(x_ND)))) if ranks.world > 1 else len(x_ND)
        spec, bias_L = self.spec, self._bias()
        scale = losses.scale(spec.loss, y_NE, count, ranks)
        pairs = self._choose(x_ND, bias_L, count, ranks)
        written_NE, quiet, active, fired_L, least = self._written(x_ND, bias_L, pairs)
        error_NE = written_NE.add_(self._beside(x_ND)).sub_(y_NE)  # in place: fresh memory is dear
        squares_N = error_NE.square().sum(1)
        share = losses.warm(step, spec.penalty_warm_up) * spec.penalty
        penalty = share * quiet / count
        total = (squares_N * scale.weights).sum() + penalty
        auxk = self._auxk(x_ND, bias_L, error_NE.detach(), count, ranks)
        if auxk is not None:
            total = total + spec.auxk_weight * scale.of_mean * auxk
        with torch.no_grad():
            sums = [squares_N.sum(), active, penalty, auxk if auxk is not None else torch.zeros_like(active)]
            error, active, penalty, auxk = ranks.total(torch.stack([each.detach().float() for each in sums])).unbind()
            self._remember(count, ranks.largest(fired_L), active / count, -ranks.largest(-least))
        return Loss(total, error, scale.variance, active / count, penalty, auxk)

    def project(self) -> None:
        """Before the optimizer's step: take from the gradient what would change the length of a unit decoder's rows."""
        dec_LE = self.weights["dec"]
        if self.spec.unit_decoder and dec_LE.grad is not None:
            with torch.no_grad():
                dec_LE.grad -= (dec_LE.grad * dec_LE).sum(1, keepdim=True) * dec_LE

    def settle(self) -> None:
        """After the optimizer's step: unit rows of the decoder, thresholds of zero or more."""
        with torch.no_grad():
            if self.spec.unit_decoder:
                dec_LE = self.weights["dec"]
                dec_LE.div_(dec_LE.norm(dim=1, keepdim=True).clamp_min(losses.TINY))
            if "threshold" in self.weights:
                self.weights["threshold"].clamp_min_(0.0)

    def dead(self) -> Tensor:
        """[L]: which latents have not been active for `dead_after` tokens."""
        return self._memory["since"] >= self.spec.dead_after

    def silent(self, seen: int) -> Tensor:
        """[L]: which have not been active on the last `dead_after` of so many tokens; on none of them if fewer."""
        return self._memory["since"] >= min(self.spec.dead_after, seen)

    def state(self) -> dict[str, Tensor]:
        """Everything that training goes on from, as copies."""
        return {name: tensor.detach().clone() for name, tensor in (self.weights | self._memory).items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        own = self.weights | self._memory
        if set(state) != set(own):
            raise CorruptArtifact(
                f"the saved state is not of this coder: it has {sorted(state)}, not {sorted(own)}. Train again"
            )
        for name, tensor in own.items():
            if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
                raise CorruptArtifact(
                    f"the saved state is not of this coder: {name} is {tuple(state[name].shape)} {state[name].dtype}, "
                    f"not {tuple(tensor.shape)} {tensor.dtype}. Train again"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def coder(self) -> Coder:
        """The coder as it is now, in its canonical form."""
        spec, weights = self.spec, {name: tensor.detach().clone() for name, tensor in self.weights.items()}
        threshold_L, k = weights.get("threshold"), spec.k
        if spec.activation == "batchtopk":
            threshold_L = torch.zeros_like(weights["enc_bias"]) + self._memory["running_threshold"].clamp_min(0.0)
        if spec.activation in ("relu", "jumprelu"):
            k = min(max(1, round(float(self._memory["running_active"]))), spec.width)
        with torch.no_grad():
            bias_L = self._bias().clone()
        return Coder(
            enc_LD=weights["enc"],
            enc_bias_L=bias_L,
            dec_LE=weights["dec"],
            dec_bias_E=weights["dec_bias"],
            skip_ED=weights.get("skip"),
            k=k,
            activation="jumprelu" if spec.activation == "batchtopk" else spec.activation,
            threshold_L=threshold_L,
        )

    def _flat(self, x_ND: Tensor, y_NE: Tensor) -> tuple[Tensor, Tensor]:
        assert x_ND.shape[:-1] == y_NE.shape[:-1] and x_ND.ndim >= 2, (
            f"{x_ND.shape} and {y_NE.shape} do not go together"
        )
        assert (x_ND.shape[-1], y_NE.shape[-1]) == (self.weights["enc"].shape[1], self.weights["dec"].shape[1])
        dtype = self.weights["enc"].dtype
        return x_ND.flatten(0, -2).to(dtype), y_NE.flatten(0, -2).to(dtype)

    def _bias(self) -> Tensor:
        """The encoder's bias; what it subtracts from x is a part of it, so that x itself needs no gradient."""
        if self.spec.tied_bias:
            return self.weights["enc_bias"] - self.weights["enc"] @ self.weights["dec_bias"]
        return self.weights["enc_bias"]

    def _beside(self, x_ND: Tensor) -> Tensor:
        if "skip" not in self.weights:
            return self.weights["dec_bias"]
        return torch.addmm(self.weights["dec_bias"], x_ND, self.weights["skip"].T)

    def _choose(self, x_ND: Tensor, bias_L: Tensor, count: int, ranks: Ranks) -> Pairs | None:
        spec, enc_LD, bias_L = self.spec, self.weights["enc"].detach(), bias_L.detach()
        if spec.activation == "topk":
            return choosing.largest(x_ND, enc_LD, bias_L, spec.k, self._dtype)
        if spec.activation == "batchtopk":
            guess = GUESS * max(0.0, float(self._memory["running_threshold"]))
            return choosing.batch_largest(x_ND, enc_LD, bias_L, spec.k * count, self._dtype, ranks, guess)
        bound_L = torch.zeros_like(bias_L)
        if spec.activation == "jumprelu":
            bound_L = self.weights["threshold"].detach() - spec.bandwidth / 2
        return choosing.above(x_ND, enc_LD, bias_L, bound_L, self._dtype)

    def _written(
        self, x_ND: Tensor, bias_L: Tensor, pairs: Pairs | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the latents write; what the penalty weighs; how many were active; which; and the least active value."""
        enc_LD, dec_LE, threshold_L = self.weights["enc"], self.weights["dec"], self.weights.get("threshold")
        if pairs is None:
            written_NE, norm, number, fired_L, least = _Dense.apply(
                x_ND, enc_LD, bias_L, dec_LE, threshold_L, self.spec.bandwidth
            )
            return written_NE, norm if threshold_L is None else number, number.detach(), fired_L, least
        before_P = _Chosen.apply(pairs.before_P, pairs.indices, pairs.offsets, x_ND, enc_LD, bias_L)
        if threshold_L is None:
            values_P = torch.relu(before_P)
            quiet = values_P.sum()
        else:
            values_P, on_P = _Jump.apply(before_P, threshold_L, pairs.indices, pairs.offsets, self.spec.bandwidth)
            quiet = on_P.sum()
        written_NE = ops.bag(values_P, pairs.indices, pairs.offsets, dec_LE)
        on = values_P.detach() > 0
        fired_L = bias_L.new_zeros(len(bias_L) + 1, dtype=torch.bool)  # the last one for pairs that are silent
        fired_L[torch.where(on, pairs.indices, len(bias_L))] = True
        least = torch.where(on, values_P.detach(), torch.inf)
        return written_NE, quiet, on.sum(), fired_L[:-1], least.min() if len(least) else x_ND.new_full((), torch.inf)

    def _auxk(self, x_ND: Tensor, bias_L: Tensor, error_NE: Tensor, count: int, ranks: Ranks) -> Tensor | None:
        """Share of the error's variance left by what the dead latents make of it: this process's part."""
        if not self.spec.auxk:
            return None
        dead = self.dead().nonzero().view(-1)
        if len(dead) == 0:
            return None
        enc_LD, dec_LE, bias_L = (each.index_select(0, dead) for each in (*self._tables(), bias_L))
        k = min(self.spec.auxk, len(dead))
        pairs = choosing.largest(x_ND, enc_LD.detach(), bias_L.detach(), k, self._dtype)
        values_P = torch.relu(_Chosen.apply(pairs.before_P, pairs.indices, pairs.offsets, x_ND, enc_LD, bias_L))
        left_NE = ops.bag(values_P, pairs.indices, pairs.offsets, dec_LE) + error_NE
        _, variance = losses.centred(error_NE, count, ranks)
        return left_NE.square().sum() / variance.clamp_min(losses.TINY)

    def _tables(self) -> tuple[Tensor, Tensor]:
        return self.weights["enc"], self.weights["dec"]

    def _remember(self, count: int, fired_L: Tensor, active: Tensor, least: Tensor) -> None:
        memory = self._memory
        memory["since"] = torch.where(fired_L, 0, memory["since"] + count)
        memory["running_active"] = _running(memory["running_active"], active)
        memory["running_threshold"] = torch.where(
            least.isfinite(), _running(memory["running_threshold"], least), memory["running_threshold"]
        )


def _running(mean: Tensor, newest: Tensor) -> Tensor:
    newest = newest.to(mean.dtype)
    return torch.where(mean == UNKNOWN, newest, torch.lerp(mean, newest, MEMORY))


class _Chosen(torch.autograd.Function):
    """Pre-activations of chosen pairs, which are known already, as a function of the encoder."""

    @staticmethod
    def forward(
        ctx: Any, before_P: Tensor, indices: Tensor, offsets: Tensor, x_ND: Tensor, enc_LD: Tensor, bias_L: Tensor
    ) -> Tensor:
        ctx.save_for_backward(indices, offsets, x_ND)
        ctx.latents = len(enc_LD)
        return before_P.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        indices, offsets, x_ND = ctx.saved_tensors
        (g_P,) = grads
        enc = ops.unbag(g_P, indices, offsets, x_ND, ctx.latents)
        return None, None, None, None, enc, ops.tally(g_P, indices, offsets, ctx.latents)


class _Jump(torch.autograd.Function):
    """p where it exceeds the threshold, and one there; a threshold learns from the pairs in a window about it."""

    @staticmethod
    def forward(
        ctx: Any, before_P: Tensor, threshold_L: Tensor, indices: Tensor, offsets: Tensor, bandwidth: float
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(before_P, threshold_L, indices, offsets)
        ctx.bandwidth = bandwidth
        on_P = (before_P > threshold_L[indices]).to(before_P.dtype)
        return before_P * on_P, on_P

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        before_P, threshold_L, indices, offsets = ctx.saved_tensors
        g_P, number_P = grads
        threshold_P = threshold_L[indices]
        slope_P = _window(before_P - threshold_P, ctx.bandwidth) * (threshold_P * g_P + number_P)
        threshold = -ops.tally(slope_P, indices, offsets, len(threshold_L))
        return g_P * (before_P > threshold_P), threshold, None, None, None


class _Dense(torch.autograd.Function):
    """The same for all latents, chunk by chunk, computed again for the gradients: for early training of relu, jumprelu.

    Gives what the latents write, the sum and the number of active values, which were active, and the least one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        enc_LD: Tensor,
        bias_L: Tensor,
        dec_LE: Tensor,
        threshold_L: Tensor | None,
        bandwidth: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x_ND, enc_LD, bias_L, dec_LE, threshold_L)
        ctx.bandwidth = bandwidth
        bound = 0.0 if threshold_L is None else threshold_L
        written_NE = x_ND.new_empty(len(x_ND), dec_LE.shape[1])
        norm, least = x_ND.new_zeros(()), x_ND.new_full((), torch.inf)
        counts_L = torch.zeros_like(bias_L, dtype=torch.int64)
        for rows, p_NL in ops.encoded(x_ND, enc_LD, bias_L):
            on_NL = p_NL > bound
            values_NL = p_NL.mul_(on_NL)
            torch.mm(values_NL, dec_LE, out=written_NE[rows])
            norm += values_NL.sum()
            counts_L += on_NL.sum(0)
        fired_L = counts_L > 0
        ctx.mark_non_differentiable(fired_L, least)
        return written_NE, norm, counts_L.sum().to(x_ND.dtype), fired_L, least

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x_ND, enc_LD, bias_L, dec_LE, threshold_L = ctx.saved_tensors
        g_NE, norm, number = grads[:3]
        enc, bias, dec = torch.zeros_like(enc_LD), torch.zeros_like(bias_L), torch.zeros_like(dec_LE)
        threshold = None if threshold_L is None else torch.zeros_like(threshold_L)
        for rows, p_NL in ops.encoded(x_ND, enc_LD, bias_L):
            on_NL = p_NL > (0.0 if threshold_L is None else threshold_L)
            g_NL = g_NE[rows] @ dec_LE.T + norm
            if threshold is not None and threshold_L is not None:
                slope_NL = _window(p_NL - threshold_L, ctx.bandwidth) * (threshold_L * g_NL + number)
                threshold -= slope_NL.sum(0)
            dec.addmm_(p_NL.mul_(on_NL).T, g_NE[rows])
            g_NL.mul_(on_NL)
            enc.addmm_(g_NL.T, x_ND[rows])
            bias += g_NL.sum(0)
        return None, enc, bias, dec, threshold, None


def _window(distance: Tensor, bandwidth: float) -> Tensor:
    """The rectangle of area one and width `bandwidth`."""
    return (distance.abs() < bandwidth / 2).to(distance.dtype) / bandwidth
