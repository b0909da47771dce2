"""The one form of a coder: y_hat = W_dec' act(W_enc x + b_enc) + W_skip x + b_dec, whatever its activation.

In: x at the coder's site. Out: the active latents of every row, and reconstructions from any latent values.
Invariant: an SAE is a coder whose y is x, a transcoder one whose y is not; a bias that a format subtracts from x is
folded into b_enc; encoding never holds more than a chunk of rows x latents; a coder loads only from safetensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nlrewrite.artifacts import Folder
from nlrewrite.coders.code import Code
from nlrewrite.errors import CorruptArtifact
from nlrewrite.specs import Site

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "coder.safetensors"
CONFIG = "coder.json"
Activation = Literal["topk", "jumprelu", "relu"]
"""What a coder in use can have; a BatchTopK has become the JumpReLU of its mean threshold."""


@dataclass
class Coder:
    """Weights of a coder; shapes: D input, E output, L latents."""

    enc_LD: "Tensor"
    enc_bias_L: "Tensor"
    dec_LE: "Tensor"
    dec_bias_E: "Tensor"
    skip_ED: "Tensor | None"
    k: int
    """Latents active on a row: exactly (topk), or as measured, rounded."""
    activation: Activation = "topk"
    threshold_L: "Tensor | None" = None
    """Of jumprelu: a latent is active where its pre-activation is above, and above zero."""

    @property
    def latents(self) -> int:
        return self.enc_LD.shape[0]

    def encode(self, x_ND: "Tensor") -> Code:
        """The active latents of each row; of a topk the k largest, negative ones with value zero. No gradient."""
        import torch

        from nlrewrite.coders import ops

        x_ND = x_ND.flatten(0, -2)
        chunks = ops.encoded(x_ND, self.enc_LD.detach(), self.enc_bias_L.detach())
        indices = x_ND.new_empty(0, dtype=torch.int64)
        if self.activation == "topk":
            values_NK = self.enc_bias_L.detach().new_empty(len(x_ND), self.k)
            indices_NK = indices.new_empty(len(x_ND), self.k)
            for part, p_NL in chunks:
                values_NK[part], indices_NK[part] = ops.topk(p_NL, self.k)
            return Code.table(values_NK.clamp_min_(0.0), indices_NK)
        bound_L = self._bound()
        found = [(indices, indices, self.enc_bias_L.detach()[:0])]
        for part, p_NL in chunks:
            row, latent = ops.above(p_NL, bound_L)
            found.append((row + part.start, latent, p_NL[row, latent]))
        row_P, indices_P, values_P = (torch.cat(each) for each in zip(*found, strict=True))
        ends = torch.bincount(row_P, minlength=len(x_ND)).cumsum(0)
        return Code(indices_P, values_P, torch.cat([ends.new_zeros(1), ends]))

    def decode(self, code: Code) -> "Tensor":
        """What the active latents write, without skip and bias: [N, E]."""
        from nlrewrite.coders import ops

        return ops.bag(code.values, code.indices, code.offsets, self.dec_LE)

    def beside(self, x_ND: "Tensor") -> "Tensor":
        """What the coder writes beside its latents: the skip term and the bias."""
        x_ND = x_ND.flatten(0, -2)
        if self.skip_ED is None:
            return self.dec_bias_E.expand(len(x_ND), -1)
        return x_ND @ self.skip_ED.T + self.dec_bias_E

    def _bound(self) -> "Tensor":
        """[L]: what a pre-activation must exceed."""
        import torch

        if self.activation == "relu":
            return torch.zeros_like(self.enc_bias_L)
        assert self.threshold_L is not None, "a jumprelu has thresholds"
        return self.threshold_L.detach().clamp_min(0.0)

    def parameters(self) -> "list[Tensor]":
        some = [self.enc_LD, self.enc_bias_L, self.dec_LE, self.dec_bias_E, self.skip_ED, self.threshold_L]
        return [each for each in some if each is not None]


def save(coder: Coder, folder: Path) -> None:
    from safetensors.torch import save_file

    named = {
        "W_enc": coder.enc_LD,
        "b_enc": coder.enc_bias_L,
        "W_dec": coder.dec_LE,
        "b_dec": coder.dec_bias_E,
        "W_skip": coder.skip_ED,
        "threshold": coder.threshold_L,
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in named.items() if tensor is not None}
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"activation": coder.activation, "k": coder.k}))


def load(weights: Path, config: Path) -> Coder:
    from safetensors.torch import load_file

    named = load_file(weights)
    settings = json.loads(config.read_text())
    activation = settings.get("activation")
    needed = {"W_enc", "b_enc", "W_dec", "b_dec"} | ({"threshold"} if activation == "jumprelu" else set())
    if missing := needed - set(named):
        raise CorruptArtifact(f"{weights} is no coder: it lacks {sorted(missing)}. Build the coder again")
    if activation not in ("topk", "jumprelu", "relu"):
        raise CorruptArtifact(f"{config} names no activation that a coder has: {activation!r}. Build the coder again")
    return Coder(
        enc_LD=named["W_enc"],
        enc_bias_L=named["b_enc"],
        dec_LE=named["W_dec"],
        dec_bias_E=named["b_dec"],
        skip_ED=named.get("W_skip"),
        k=int(settings["k"]),
        activation=activation,
        threshold_L=named.get("threshold"),
    )


def read(folder: Folder) -> Coder:
    return load(folder.path(WEIGHTS), folder.path(CONFIG))


def site_of(coder: Folder) -> Site:
    """The site a coder stands at, as its manifest says."""
    return Site.model_validate(coder.manifest.spec["site"])
