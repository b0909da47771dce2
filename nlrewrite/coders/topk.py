"""The TopK coder: y_hat = W_dec' TopK(W_enc x + b_enc) + W_skip x + b_dec.

In: x at the coder's site. Out: the k active latents of every token, and reconstructions from any latent values.
Invariant: encoding never holds more than a chunk of tokens x latents, and a coder loads only from safetensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nlrewrite.artifacts import Folder
from nlrewrite.errors import CorruptArtifact
from nlrewrite.specs import CoderSpec, Site

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "coder.safetensors"
CONFIG = "coder.json"
ENCODED_AT_ONCE = 1 << 24  # tokens x latents of one chunk


@dataclass
class TopKCoder:
    """Weights of a coder; shapes: D input, E output, L latents."""

    enc_LD: "Tensor"
    enc_bias_L: "Tensor"
    dec_LE: "Tensor"
    dec_bias_E: "Tensor"
    skip_ED: "Tensor | None"
    k: int

    @property
    def latents(self) -> int:
        return self.enc_LD.shape[0]

    def encode(self, x_ND: "Tensor") -> "tuple[Tensor, Tensor]":
        """Values and indices of the k largest latents of each token; negative ones count as inactive (zero)."""
        import torch

        rows = max(1, ENCODED_AT_ONCE // self.latents)
        parts = [
            torch.topk(torch.addmm(self.enc_bias_L, part, self.enc_LD.T), self.k, dim=-1, sorted=False)
            for part in x_ND.split(rows)
        ]
        values = torch.cat([part.values for part in parts]).clamp_min(0.0)
        return values, torch.cat([part.indices for part in parts])

    def decode(self, values_NK: "Tensor", indices_NK: "Tensor") -> "Tensor":
        """What the active latents write, without skip and bias."""
        import torch

        return torch.nn.functional.embedding_bag(indices_NK, self.dec_LE, per_sample_weights=values_NK, mode="sum")

    def beside(self, x_ND: "Tensor") -> "Tensor":
        """What the coder writes beside its latents: the skip term and the bias."""
        if self.skip_ED is None:
            return self.dec_bias_E.expand(len(x_ND), -1)
        return x_ND @ self.skip_ED.T + self.dec_bias_E

    def parameters(self) -> "list[Tensor]":
        skip = [] if self.skip_ED is None else [self.skip_ED]
        return [self.enc_LD, self.enc_bias_L, self.dec_LE, self.dec_bias_E, *skip]


def save(coder: TopKCoder, folder: Path) -> None:
    from safetensors.torch import save_file

    named = {"W_enc": coder.enc_LD, "b_enc": coder.enc_bias_L, "W_dec": coder.dec_LE, "b_dec": coder.dec_bias_E}
    if coder.skip_ED is not None:
        named["W_skip"] = coder.skip_ED
    save_file({name: tensor.detach().contiguous() for name, tensor in named.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"activation": "topk", "k": coder.k}))


def load(weights: Path, config: Path) -> TopKCoder:
    from safetensors.torch import load_file

    named = load_file(weights)
    settings = json.loads(config.read_text())
    missing = {"W_enc", "b_enc", "W_dec", "b_dec"} - set(named)
    if missing or settings.get("activation") != "topk":
        raise CorruptArtifact(f"{weights} is no TopK coder: it lacks {sorted(missing) or 'activation=topk'}")
    return TopKCoder(
        named["W_enc"], named["b_enc"], named["W_dec"], named["b_dec"], named.get("W_skip"), int(settings["k"])
    )


def read(folder: Folder) -> TopKCoder:
    return load(folder.path(WEIGHTS), folder.path(CONFIG))


def site_of(coder: Folder) -> Site:
    """The site a coder was trained at, as its manifest says."""
    return CoderSpec.model_validate(coder.manifest.spec).site
