"""A coder as wide as those of a hub is loaded and used in the memory of its weights and one matrix more."""

import json
import subprocess
import sys
from pathlib import Path

from tests.coders.formats.bounded import write

LATENTS, INPUTS, ROWS = 1 << 16, 64, 2048
SLACK = 24
"""MB: buffers of reading, chunks of encoding, and codes."""


def test_loading_holds_one_matrix_more_than_the_coder_and_encoding_no_rows_of_all_latents(tmp_path: Path) -> None:
    write(tmp_path / "coders", LATENTS, INPUTS)
    arguments = (str(each) for each in (LATENTS, INPUTS, ROWS, tmp_path / "coders"))
    run = [sys.executable, "-m", "tests.coders.formats.bounded", *arguments]
    found = json.loads(subprocess.run(run, check=True, capture_output=True, timeout=300).stdout)
    matrix, dense = LATENTS * INPUTS * 4 / 2**20, LATENTS * ROWS * 4 / 2**20
    bound = found["weights"] + matrix + SLACK
    assert dense > 2 * bound
    assert matrix < found["loading lens"] < bound
    assert found["loading average_l0_90"] < bound
    assert found["loading and encoding"] < bound
    assert 10 < found["active on a row"] < 200
