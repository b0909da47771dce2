"""One training step by sparsify, and the golden file that the default suite holds ours to.

    .venv-peers/bin/python -m tests.peers.step

writes tests/golden/training/step.json anew.
"""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from tests.coders.one_step import KINDS, Drawn, drawn, summary

GOLDEN = Path(__file__).parents[1] / "golden" / "training" / "step.json"
NAMES = {"enc": "encoder.weight", "enc_bias": "encoder.bias", "dec": "W_dec", "dec_bias": "b_dec", "skip": "W_skip"}


def coder(made: Drawn, **config: object):
    """sparsify's coder with the weights of `made`."""
    from sparsify import SparseCoder, SparseCoderConfig

    latents, d = made.weights["enc"].shape
    transcode = made.kind != "sae"
    settings = SparseCoderConfig(
        num_latents=latents, k=made.k, transcode=transcode, skip_connection="skip" in made.weights, **config
    )
    with torch.random.fork_rng(devices=[]):
        result = SparseCoder(d, settings)
    result.load_state_dict({NAMES[name]: weight for name, weight in made.weights.items()})
    return result


def step(made: Drawn) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients as its trainer hands them to the optimizer, the SAE's projected ones included."""
    result = coder(made)
    loss = result(made.x_ND, made.y_ND).fvu
    loss.backward()
    if made.kind == "sae":
        result.remove_gradient_parallel_to_decoder_directions()
    return float(loss.detach()), gradients(result)


def gradients(result) -> dict[str, Tensor]:
    parameters = dict(result.named_parameters())
    return {name: parameters[theirs].grad for name, theirs in NAMES.items() if theirs in parameters}


def main() -> None:
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    steps = {kind: summary(*step(drawn(kind))) for kind in KINDS}
    about = {"eai-sparsify": version("eai-sparsify"), "torch": version("torch").partition("+")[0]}
    GOLDEN.write_text(json.dumps({"made by": about, "steps": steps}, indent=1) + "\n")


if __name__ == "__main__":
    main()
