"""Which files a coder consists of: the ones that are read, and no others."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nlrewrite import filling, profiles
from nlrewrite.coders import files, form, formats
from nlrewrite.coders.formats import About
from nlrewrite.coding import FolderCoder
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides
from nlrewrite.published import UNCHOSEN
from tests.coders.formats import pickles


def coder(seed: int = 0) -> form.Coder:
    w = pickles.drawn(seed, enc=(12, 6), b=(12,), dec=(12, 6), out=(6,))
    return form.Coder(w["enc"], w["b"], w["dec"], w["out"], None, 3)


def sparsify(folder: Path, seed: int = 0) -> Path:
    formats.save(coder(seed), folder, "sparsify", About())
    return folder


def saelens(folder: Path) -> Path:
    formats.save(coder(), folder, "saelens", About())
    return folder


def gpt2(folder: Path) -> Path:
    folder.mkdir()
    return pickles.transcoder(folder, 0, 6, 6, 12)


def dictionary(folder: Path) -> Path:
    folder.mkdir()
    torch.save(
        pickles.drawn(0, **{"encoder.weight": (12, 6), "encoder.bias": (12,), "bias": (6,)})
        | {"decoder.weight": torch.ones(6, 12)},
        folder / "ae.pt",
    )
    (folder / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    return folder


@pytest.mark.parametrize("make", [sparsify, saelens, gpt2, dictionary])
def test_a_coder_is_whole_with_its_files_and_other_files_do_not_count(make, tmp_path: Path) -> None:
    place = make(tmp_path / "coder")
    folder = place if place.is_dir() else place.parent
    (folder / "README.md").write_text("words")
    (folder / "optimizer.bin").write_bytes(b"state")
    found, content = files.files(place), files.fingerprint(place)
    assert {"README.md", "optimizer.bin"}.isdisjoint(each.name for each in found)
    moved = tmp_path / "moved"
    moved.mkdir()
    for each in found:
        (moved / each.name).write_bytes(each.read_bytes())
    again = moved if place.is_dir() else moved / place.name
    assert torch.equal(formats.load(again).coder.enc_LD, formats.load(place).coder.enc_LD)
    (folder / "README.md").write_text("other words")
    assert files.fingerprint(place) == files.fingerprint(again) == content
    for each in found:
        before = each.read_bytes()
        each.write_bytes(before + b" ")
        assert files.fingerprint(place) != content, each.name
        each.write_bytes(before)


@pytest.mark.parametrize("make", [sparsify, saelens, gpt2, dictionary])
def test_a_repository_is_asked_for_no_file_that_is_not_read(make, tmp_path: Path) -> None:
    place = make(tmp_path / "coder")
    asked = files.patterns(place.name if place.is_file() else "")
    assert {each.name for each in files.files(place)} <= set(asked)
    within = files.patterns(f"layers.6.mlp/{place.name}" if place.is_file() else "layers.6.mlp")
    assert within == [f"layers.6.mlp/{each}" for each in asked]


def test_a_layer_left_open_is_every_layer(tmp_path: Path) -> None:
    for layer in range(3):
        sparsify(tmp_path / f"layers.{layer}.mlp", layer)
    where = Execution(coder_folder=str(tmp_path))
    all_layers = files.identified(FolderCoder(path="layers.{layer}.mlp"), where).content
    assert all(files.among_layers(all_layers, tmp_path, f"layers.{layer}.mlp", layer) for layer in range(3))
    assert not files.among_layers(all_layers, tmp_path, "layers.1.mlp", 2)
    one = files.identified(FolderCoder(path="layers.1.mlp"), where).content
    assert one == files.fingerprint(tmp_path / "layers.1.mlp") != all_layers
    assert not files.among_layers(one, tmp_path, "layers.1.mlp", 1)
    swapped = tmp_path / "swapped"
    (tmp_path / "layers.0.mlp").rename(swapped)
    (tmp_path / "layers.1.mlp").rename(tmp_path / "layers.0.mlp")
    swapped.rename(tmp_path / "layers.1.mlp")
    assert not files.among_layers(all_layers, tmp_path, "layers.2.mlp", 2)
    with pytest.raises(Unreachable, match="for any layer"):
        files.fingerprint(tmp_path, "{layer}/other")


def test_a_profile_says_which_files_it_means(tmp_path: Path) -> None:
    chosen = Overrides(settings=("coder.kind=folder", "coder.path=layers.1.mlp", "coder.width=12", "coder.k=3"))
    spec = profiles.settled("tiny", chosen)
    content = files.fingerprint(sparsify(tmp_path / "layers.1.mlp"))
    filled = filling.filled(spec, Execution(coder_folder=str(tmp_path))).coder
    assert isinstance(filled, FolderCoder) and filled.content == content
    with pytest.raises(SettingError, match="Name one with --coder-folder"):
        filling.filled(spec, Execution())


def test_a_repository_without_a_revision_is_planned_and_not_run() -> None:
    chosen = Overrides(settings=("coder.kind=hub", "coder.repo=a/coder", f"coder.revision={UNCHOSEN}"))
    with pytest.raises(SettingError, match=r"revision of a/coder is not chosen.*coder\.revision=<commit>"):
        profiles.require_runnable("tiny", profiles.settled("tiny", chosen))


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds no coder"):
        files.files(tmp_path)
    with pytest.raises(Unreachable, match="there is no"):
        files.files(tmp_path / "missing")
    given = FolderCoder(content="0" * 64)
    assert files.identified(given, Execution()) is given


def test_naming_a_coder_loads_no_numeric_library() -> None:
    code = "import sys, nlrewrite.coders.files; print({'torch', 'numpy', 'safetensors'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
