"""Tensors out of foreign pickles: nothing in them is run, and what is not a coder's file is refused by name."""

import contextlib
import importlib.util
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlrewrite.coders.formats import pickled
from nlrewrite.errors import CorruptArtifact, SettingError, Unreachable
from tests.coders.formats import pickles


def tensors() -> dict[str, torch.Tensor]:
    whole = torch.arange(24.0).reshape(4, 6)
    return {
        "plain": whole,
        "part": whole[1:3, ::2],
        "turned": whole.T,
        "scalar": torch.tensor(5, dtype=torch.int32),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.float64)),
    }


def test_tensors_are_those_that_were_saved(tmp_path: Path) -> None:
    expected = tensors()
    torch.save(OrderedDict(expected), tmp_path / "x.pt")
    read = pickled.read(tmp_path / "x.pt")
    assert set(read) == set(expected)
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor.detach()), name
    assert read["plain"].data_ptr() == read["turned"].data_ptr(), "tensors that share a storage share it still"


def test_a_state_dict_of_a_module_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module.state_dict(), tmp_path / "x.pt")  # carries attributes beside its entries
    read = pickled.read(tmp_path / "x.pt")
    assert torch.equal(read["0.weight"], module[0].weight) and set(read) == set(module.state_dict())


def test_a_foreign_object_keeps_its_state_without_its_package(tmp_path: Path) -> None:
    def made(config: Any) -> Any:
        fields = {"d_in": 7, "device": torch.device("cuda", 1), "dtype": torch.float32, "shape": torch.Size([2, 3])}
        return {"cfg": config(**fields), "state_dict": tensors()}

    read = pickled.read(pickles.save_with_config(made, tmp_path / "x.pt"))
    assert importlib.util.find_spec("sae_training") is None
    state = read["cfg"].state
    assert (
        isinstance(read["cfg"], pickled.Foreign)
        and type(read["cfg"]).name == "sae_training.config.LanguageModelSAERunnerConfig"
    )
    assert state == {"d_in": 7, "device": "cuda:1", "dtype": torch.float32, "shape": (2, 3)}
    assert torch.equal(read["state_dict"]["part"], tensors()["part"])


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.of = (function, arguments)

    def __reduce__(self) -> Any:
        return self.of


def touches(canary: Path) -> str:
    return f"__import__('pathlib').Path({str(canary)!r}).touch()"


def attacks(canary: Path) -> dict[str, tuple[Any, str]]:
    program = [sys.executable, "-c", touches(canary)]
    inner = canary.with_name("inner.pt")
    torch.save(Calls(eval, touches(canary)), inner)
    command = f"touch {canary}"
    return {
        "system": (Calls(os.system, command), "system"),
        "eval": (Calls(eval, touches(canary)), "eval"),
        "exec": (Calls(exec, touches(canary)), "exec"),
        "process": (Calls(subprocess.check_call, program), "check_call"),
        "nested": (Calls(torch.storage._load_from_bytes, inner.read_bytes()), "torch.storage._load_from_bytes"),
        "in a key": ({"W_enc": torch.zeros(2), "deep": [(Calls(eval, touches(canary)),)]}, "eval"),
        "by pickle": (Calls(pickle.loads, pickle.dumps(Calls(eval, touches(canary)))), "loads"),
        "import": (Calls(__import__, "antigravity"), "__import__"),
    }


ATTACKS = ("system", "eval", "exec", "process", "nested", "in a key", "by pickle", "import")


@pytest.mark.parametrize("which", ATTACKS)
def test_what_a_pickle_calls_is_refused_and_not_run(which: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    value, named = attacks(canary)[which]
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(SettingError, match=r"would call .*" + named.replace(".", r"\.")):
        pickled.read(tmp_path / "x.pt")
    assert not canary.exists()


def test_the_canary_sings_where_pickles_are_run(tmp_path: Path) -> None:
    torch.save(Calls(eval, touches(tmp_path / "canary")), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


def rewritten(path: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with its entries changed, every checksum right."""
    with zipfile.ZipFile(path) as archive:
        entries = {each.filename: archive.read(each) for each in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            found = change(name.partition("/")[2], data)
            if found is not None:
                archive.writestr(name, found)
    return path


def with_pickle(path: Path, code: bytes) -> Path:
    torch.save({"x": torch.arange(3.0)}, path)
    return rewritten(path, lambda name, data: code if name == "data.pkl" else data)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'x'\ntR.", "call builtins.__import__"),
        (b"cbuiltins\ngetattr\n(cos\npath\nS'os'\ntRS'system'\n(S'x'\ntR.", "call builtins.getattr"),
        (b"(S'touch canary'\nios\nsystem\n.", "would call os.system"),
        (b"(cos\nsystem\nS'touch canary'\no.", "would call os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.", "would call os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x0deval.__call__\x93\x8c\x011\x85R.", "would call builtins.eval.__call__"),
        (b"\x80\x02\x82\x01.", "would call a function by its number"),
        (b"(lp0\ncos\nsystem\n(S'x'\ntRa.", "would call os.system"),
        (
            b"(lp0\nccollections\nOrderedDict\n(cbuiltins\nmap\n(cbuiltins\neval\n(lS'1'\natRtR.",
            "would call builtins.map",
        ),
    ],
)
def test_older_and_newer_ways_to_call_are_refused_too(
    code: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=message):
        pickled.read(with_pickle(tmp_path / "x.pt", code))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["torch._utils\n_rebuild_tensor_v2", "torch\ndevice", "torch\nFloatStorage"])
def test_a_state_cannot_be_given_to_a_function(name: str, tmp_path: Path) -> None:
    before = dict(vars(torch._utils._rebuild_tensor_v2)), torch._utils._rebuild_tensor_v2.__defaults__
    code = f"c{name}\n".encode() + b"(N(dS'__defaults__'\nI1\nsS'nosy'\nI1\nstb."
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        pickled.read(with_pickle(tmp_path / "x.pt", code))
    assert (dict(vars(torch._utils._rebuild_tensor_v2)), torch._utils._rebuild_tensor_v2.__defaults__) == before


def test_nothing_of_torchs_own_lists_is_changed(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    pickled.read(pickles.save_with_config(lambda config: config(a=1), tmp_path / "x.pt"))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_a_file_cut_short_is_refused_by_name(share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    torch.save(tensors(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CorruptArtifact, match=r"cut\.pt is cut short or damaged"):
        pickled.read(path)


def test_a_changed_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"x": torch.full((100,), 1.5)}, path)
    data = path.read_bytes()
    at = data.index(torch.full((100,), 1.5).numpy().tobytes()) + 40
    path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    with pytest.raises(CorruptArtifact, match=r"x\.pt is cut short or damaged"):
        pickled.read(path)


def test_storages_have_as_many_bytes_as_their_numbers_take(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"x": torch.arange(8.0)}, path)
    rewritten(path, lambda name, data: data[:-4] if name == "data/0" else data)
    with pytest.raises(CorruptArtifact, match="storage 0 has 28 bytes, and its 8 numbers"):
        pickled.read(path)
    torch.save({"x": torch.arange(8.0)}, path)
    rewritten(path, lambda name, data: None if name == "data/0" else data)
    with pytest.raises(CorruptArtifact, match="it lacks data/0"):
        pickled.read(path)


def test_a_tensor_stays_within_its_storage(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"x": torch.arange(8.0)}, path)
    rewritten(path, lambda name, data: data.replace(b"K\x08\x85", b"K\x09\x85") if name == "data.pkl" else data)
    with pytest.raises(CorruptArtifact, match="goes beyond its storage of 8"):
        pickled.read(path)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(1000)}, path)
    with pytest.raises(CorruptArtifact, match="is compressed"):
        pickled.read(rewritten(path, lambda name, data: data, zipfile.ZIP_DEFLATED))
    with pytest.raises(CorruptArtifact, match="no 4294967295 objects"):
        pickled.read(with_pickle(path, b"\x80\x02Nr\xff\xff\xff\xff."))
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        pickled.read(with_pickle(path, b"\x80\x04B\xff\xff\xff\x7fabc."))


def test_other_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(SettingError, match=r"before 1\.6"):
        pickled.read(path)
    (tmp_path / "storages").write_bytes(b"x" * 600)
    with tarfile.open(path, "w") as archive:  # how torch kept them before that
        archive.add(tmp_path / "storages", "storages")
    with pytest.raises(SettingError, match=r"before 1\.6"):
        pickled.read(path)
    path.write_bytes(b"\x1f\x8bmore")
    with pytest.raises(SettingError, match="gzip"):
        pickled.read(path)
    path.write_bytes(b"words")
    with pytest.raises(SettingError, match=r"no file that torch\.save wrote"):
        pickled.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(SettingError, match=r"none that torch\.save wrote"):
        pickled.read(path)
    with pytest.raises(Unreachable, match="there is no file"):
        pickled.read(tmp_path / "missing.pt")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(at: int, byte: int, cut: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(6.0).reshape(2, 3), "k": 4}, path)

    def change(name: str, data: bytes) -> bytes:
        if name != "data.pkl":
            return data
        place = at % len(data)
        return data[:place] if cut else data[:place] + bytes([byte]) + data[place + 1 :]

    rewritten(path, change)
    with contextlib.suppress(SettingError, CorruptArtifact):
        pickled.read(path)
