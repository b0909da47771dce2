"""How a format is told, and what is said where none is."""

from pathlib import Path

import pytest
import torch

from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats import FORMATS, About, load, recognise, save
from nlrewrite.errors import SettingError, Unreachable

FILES = {
    "sparsify": ("cfg.json", "sae.safetensors"),
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "gemma-scope": ("config.json", "params.safetensors"),
}


def _touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"nothing that could be parsed")
    return folder


@pytest.mark.parametrize("format", list(FILES))
def test_a_format_is_told_by_names_of_files_alone(tmp_path: Path, format: str) -> None:
    folder = _touch(tmp_path, *FILES[format], "optimizer_0.pt", "README.md")
    assert recognise(folder) == format
    assert recognise(folder / FILES[format][-1]) == format
    (folder / FILES[format][-1]).unlink()
    with pytest.raises(SettingError, match="no known format"):
        recognise(folder)


def test_the_first_gemma_scope_is_one_file(tmp_path: Path) -> None:
    assert recognise(_touch(tmp_path, "params.npz")) == "gemma-scope"
    assert recognise(tmp_path / "params.npz") == "gemma-scope"


def test_where_no_format_is_told_all_say_what_they_need_and_what_was_found_is_named(tmp_path: Path) -> None:
    _touch(tmp_path, "model.safetensors", "cfg.json")
    (tmp_path / "logs").mkdir()
    with pytest.raises(SettingError) as raised:
        recognise(tmp_path)
    for known in FORMATS.values():
        assert f"{known.name} needs {known.needs}" in str(raised.value)
    assert "Found: cfg.json, logs/, model.safetensors" in str(raised.value)
    with pytest.raises(Unreachable, match="there is no"):
        recognise(tmp_path / "elsewhere")


def test_folders_of_several_coders_are_listed(tmp_path: Path) -> None:
    for number in range(10):
        _touch(tmp_path / f"layers.{number}.mlp", *FILES["sparsify"])
    _touch(tmp_path / "layers.3.mlp" / "seed1", *FILES["sparsify"])
    with pytest.raises(SettingError, match=r"several coders: layers.0.mlp, .*layers.3.mlp/seed1.* and 3 more"):
        recognise(tmp_path)


def test_files_of_two_formats_ask_for_a_word(tmp_path: Path) -> None:
    _touch(tmp_path, *FILES["sparsify"], *FILES["saelens"])
    with pytest.raises(SettingError, match="format=sparsify"):
        load(tmp_path)


def test_a_format_that_is_named_is_held_to_its_files(tmp_path: Path) -> None:
    _touch(tmp_path, *FILES["sparsify"])
    with pytest.raises(SettingError, match=r"not of the format saelens, which needs cfg.json and sae_weights"):
        load(tmp_path, "saelens")
    with pytest.raises(SettingError, match="no format 'onnx'"):
        load(tmp_path, "onnx")


def test_a_coder_is_not_written_over_another(tmp_path: Path) -> None:
    coder = Coder(torch.ones(8, 4), torch.zeros(8), torch.ones(8, 4), torch.zeros(4), None, 2)
    save(coder, tmp_path, "sparsify", About())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for format in ("sparsify", "saelens"):
        with pytest.raises(SettingError, match="holds a coder already"):
            save(coder, tmp_path, format, About())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
