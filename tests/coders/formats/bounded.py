"""How much memory it takes to load a coder and to encode with it: a process of its own, for a peak is one's life long.

    python -m tests.coders.formats.bounded 131072 2304 1024 FOLDER

The first call writes random coders of so many latents and inputs into the folder, which must not be there yet. The next
one loads each, encodes so many rows with the last, and writes to standard output what that took, in MB, beyond what the
process held before.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from nlrewrite.coders.formats import load

FIRED = 3.2
"""The threshold, in deviations: a latent in 1,450 is active."""


def write(folder: Path, latents: int, inputs: int) -> None:
    """A coder as the first Gemma Scope has it, and one as SAELens does; both have encoders to be transposed."""
    generator = torch.Generator().manual_seed(0)
    weights_DL = torch.randn(inputs, latents, generator=generator).div_(inputs**0.5)
    named = {
        "b_enc": torch.zeros(latents),
        "W_dec": torch.randn(latents, inputs, generator=generator),
        "b_dec": torch.ones(inputs),
        "threshold": torch.full((latents,), FIRED),
    }
    first, lens = folder / "average_l0_90", folder / "lens"
    for each in (first, lens):
        each.mkdir(parents=True)
    arrays = {name: tensor.numpy() for name, tensor in named.items()}
    np.savez(first / "params.npz", W_enc=weights_DL.numpy(), **arrays)
    save_file({"W_enc": weights_DL} | named, lens / "sae_weights.safetensors")
    said = {"architecture": "jumprelu", "d_in": inputs, "d_sae": latents, "apply_b_dec_to_input": True}
    (lens / "cfg.json").write_text(json.dumps(said | {"metadata": {"sae_lens_version": "6.0.0"}}))


def peak() -> float:
    """MB at most so far; by the kernel's account of this process, for that of rusage begins with the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(folder: Path, inputs: int, rows: int) -> dict[str, float]:
    torch.ones(64, 64) @ torch.ones(64, 64)  # libraries take their own memory when they are first used
    at_rest, found = peak(), dict[str, float]()
    coder = None
    for name in ("lens", "average_l0_90"):
        coder = None
        start = time.perf_counter()
        coder = load(folder / name).coder
        found[f"loading {name}"], found[f"seconds loading {name}"] = peak() - at_rest, time.perf_counter() - start
    assert coder is not None
    start = time.perf_counter()
    code = coder.encode(torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1)))
    found |= {"loading and encoding": peak() - at_rest, "seconds encoding": time.perf_counter() - start}
    return found | {"active on a row": len(code.values) / rows, "weights": 2 * coder.enc_LD.nbytes / 2**20}


def main(latents: int, inputs: int, rows: int, folder: Path) -> None:
    if not folder.exists():
        write(folder, latents, inputs)
    else:
        sys.stdout.write(json.dumps(measure(folder, inputs, rows)) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
