"""Files written by the packages themselves, and what those compute with them (tests/peers/formats.py makes them)."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from nlrewrite.coders.formats import load, save
from tests.coders.formats.dense import written

GOLDEN = Path(__file__).parents[2] / "golden" / "formats"
FOLDERS = sorted(path.parent for package in ("sparsify", "saelens") for path in GOLDEN.glob(f"{package}/*/*/cfg.json"))
CLOSE = 2e-5


def _named(folder: Path) -> str:
    return f"{folder.parents[1].name}-{folder.parent.name}"


def test_there_is_a_file_of_every_kind() -> None:
    assert len(FOLDERS) == 11


@pytest.mark.parametrize("folder", FOLDERS, ids=_named)
def test_a_coder_writes_what_its_package_wrote(folder: Path) -> None:
    loaded = load(folder)
    expected = load_file(folder.parent / "expected.safetensors")
    x_ND, y_NE = expected["x"], expected["y"]
    coder = loaded.coder
    assert loaded.format == folder.parents[1].name
    assert float((written(coder, x_ND) - y_NE).abs().max()) < CLOSE
    assert float((coder.decode(coder.encode(x_ND)) + coder.beside(x_ND) - y_NE).abs().max()) < CLOSE


@pytest.mark.parametrize("folder", FOLDERS, ids=_named)
def test_a_coder_is_the_same_after_it_was_written_and_read(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    out = tmp_path / "layers.6.mlp"
    save(loaded.coder, out, loaded.format, loaded.about)
    again = load(out)
    expected = load_file(folder.parent / "expected.safetensors")
    assert again.about.kind == loaded.about.kind
    assert float((written(again.coder, expected["x"]) - expected["y"]).abs().max()) < CLOSE
    assert again.about.hook_in == loaded.about.hook_in
    assert again.about.layer == loaded.about.layer
