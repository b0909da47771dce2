"""Coders as sparsify and SAELens write them, and the golden files that the default suite reads.

    .venv-peers/bin/python -m tests.peers.formats

writes tests/golden/formats anew: for every kind a folder of the package's own files, and beside it what the package
computes on five rows.
"""

import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
D, E, LATENTS, K, ROWS = 16, 12, 64, 4, 5

Written = Callable[[Tensor], Tensor]


def rows(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, D, generator=torch.Generator().manual_seed(seed))


def _fill(module: torch.nn.Module, seed: int = 1) -> None:
    """Gaussian weights, none symmetric, no bias zero; thresholds above zero; what is written is of the size of one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(module.named_parameters()):
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(drawn.abs() * 0.5 if name == "threshold" else drawn * 0.25)


def sparsify(folder: Path, **config: Any) -> Written:
    from sparsify import SparseCoder, SparseCoderConfig

    dtype = config.pop("dtype", torch.float32)
    coder = SparseCoder(D, SparseCoderConfig(k=K, **config), dtype=dtype)
    _fill(coder)
    coder.save_to_disk(folder)
    return read_sparsify(folder)


def read_sparsify(folder: Path) -> Written:
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(folder)
    return lambda x_ND: coder(x_ND.to(coder.dtype)).sae_out.detach().float()


def saelens(folder: Path, architecture: str, **config: Any) -> Written:
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    made, settings = get_sae_class(architecture)
    words = SAEMetadata(
        model_name="gpt2-small", hook_name="blocks.8.hook_mlp_out", hook_name_out="blocks.9.hook_mlp_out"
    )
    coder = made(settings(d_in=D, d_sae=LATENTS, metadata=words, **config))
    _fill(coder)
    coder.save_model(folder)
    return read_saelens(folder)


def trained_by_saelens(folder: Path, architecture: str, finished: bool, **config: Any) -> Written:
    """A coder in training, as its trainer saves it; the settings of use are those that SAELens itself gives it."""
    from sae_lens.registry import get_sae_training_class

    made, settings = get_sae_training_class(architecture)
    coder = made(settings(d_in=D, d_sae=LATENTS, **config))
    _fill(coder)
    if hasattr(coder, "topk_threshold"):
        coder.topk_threshold.fill_(0.75)
    coder.save_inference_model(folder / "use" if not finished else folder)
    read = read_saelens(folder / "use" if not finished else folder)
    if not finished:
        shutil.rmtree(folder / "use")
        coder.save_model(folder)
    return read


def read_saelens(folder: Path) -> Written:
    from sae_lens.saes.sae import SAE

    coder = SAE.load_from_disk(folder)
    return lambda x_ND: coder(x_ND).detach()


SPARSIFY: dict[str, Callable[[Path], Written]] = {
    "sae": partial(sparsify, num_latents=LATENTS),
    "sae-expanded": partial(sparsify, expansion_factor=LATENTS // D),
    "sae-skip": partial(sparsify, num_latents=LATENTS, skip_connection=True),
    "sae-free-decoder": partial(sparsify, num_latents=LATENTS, normalize_decoder=False),
    "transcoder": partial(sparsify, num_latents=LATENTS, transcode=True),
    "skip-transcoder": partial(sparsify, num_latents=LATENTS, transcode=True, skip_connection=True),
}
SAELENS: dict[str, Callable[[Path], Written]] = {
    "topk": partial(saelens, architecture="topk", k=K),
    "topk-unsubtracted": partial(saelens, architecture="topk", k=K, apply_b_dec_to_input=False),
    "topk-rescaled": partial(saelens, architecture="topk", k=K, rescale_acts_by_decoder_norm=True),
    "standard": partial(saelens, architecture="standard"),
    "jumprelu": partial(saelens, architecture="jumprelu"),
    "jumprelu-unsubtracted": partial(saelens, architecture="jumprelu", apply_b_dec_to_input=False),
    "gated": partial(saelens, architecture="gated"),
    "transcoder": partial(saelens, architecture="transcoder", d_out=E, apply_b_dec_to_input=False),
    "skip-transcoder": partial(saelens, architecture="skip_transcoder", d_out=E, apply_b_dec_to_input=False),
    "jumprelu-transcoder": partial(saelens, architecture="jumprelu_transcoder", d_out=E, apply_b_dec_to_input=False),
    "jumprelu-skip-transcoder": partial(
        saelens, architecture="jumprelu_skip_transcoder", d_out=E, apply_b_dec_to_input=False
    ),
    "batchtopk": partial(trained_by_saelens, architecture="batchtopk", finished=True, k=K),
    "batchtopk-unfinished": partial(trained_by_saelens, architecture="batchtopk", finished=False, k=K),
    "batchtopk-unscaled-unfinished": partial(
        trained_by_saelens, architecture="batchtopk", finished=False, k=K, rescale_acts_by_decoder_norm=False
    ),
    "matryoshka": partial(
        trained_by_saelens, architecture="matryoshka_batchtopk", finished=True, k=K, matryoshka_widths=[16, LATENTS]
    ),
    "topk-unfinished": partial(trained_by_saelens, architecture="topk", finished=False, k=K),
    "jumprelu-unfinished": partial(trained_by_saelens, architecture="jumprelu", finished=False),
}
GOLD = {
    "sparsify": ("sae", "sae-expanded", "transcoder", "skip-transcoder"),
    "saelens": (
        "topk",
        "topk-rescaled",
        "standard",
        "jumprelu",
        "gated",
        "skip-transcoder",
        "jumprelu-skip-transcoder",
    ),
}
"""What the default suite reads; the rest is tried where the packages are."""


def main() -> None:
    for package, cases in (("sparsify", SPARSIFY), ("saelens", SAELENS)):
        shutil.rmtree(GOLDEN / package, ignore_errors=True)
        for name in GOLD[package]:
            folder = GOLDEN / package / name / "layers.6.mlp"
            folder.mkdir(parents=True)
            written = cases[name](folder)
            x_ND = rows()
            save_file(
                {"x": x_ND, "y": written(x_ND).contiguous()},
                folder.parent / "expected.safetensors",
                {"written by": f"{package} {version({'sparsify': 'eai-sparsify', 'saelens': 'sae-lens'}[package])}"},
            )


if __name__ == "__main__":
    main()
