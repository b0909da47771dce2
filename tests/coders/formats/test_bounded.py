"""A coder as wide as those of a hub is loaded and used in the memory of its weights and little more."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.coders.formats.bounded import write

LATENTS, INPUTS, ROWS = 1 << 16, 128, 1024
BUFFERS, CHUNKS = 28, 64
"""MB: what reading holds beside the coder, and what encoding holds beside it."""
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""What is freed goes back at once; else a process of some dozen keeps a buffer more, by where in memory it lay."""


def test_loading_holds_no_matrix_but_the_coders_and_encoding_no_rows_of_all_latents(tmp_path: Path) -> None:
    write(tmp_path / "coders", LATENTS, INPUTS)
    arguments = (str(each) for each in (LATENTS, INPUTS, ROWS, tmp_path / "coders"))
    run = [sys.executable, "-m", "tests.coders.formats.bounded", *arguments]
    found = json.loads(
        subprocess.run(run, env={**os.environ, **GIVEN_BACK}, check=True, capture_output=True, timeout=300).stdout
    )
    matrix, dense = LATENTS * INPUTS * 4 / 2**20, LATENTS * ROWS * 4 / 2**20
    assert matrix > BUFFERS
    assert dense > 3 * CHUNKS
    for name in ("lens", "average_l0_90"):
        assert found["weights"] < found[f"loading {name}"] < found["weights"] + BUFFERS
    assert found["loading and encoding"] < found["weights"] + CHUNKS
    assert 10 < found["active on a row"] < 200
