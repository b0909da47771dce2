from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from nlrewrite.coders.formats import tensors
from nlrewrite.coders.formats.tensors import open_npz, open_safetensors
from nlrewrite.errors import CorruptArtifact, SettingError

shapes = st.tuples(st.integers(0, 9), st.integers(1, 9))


@given(shapes, st.integers(1, 40), st.sampled_from(("float32", "float16", "float64")))
def test_a_tensor_or_its_transpose_is_read_in_parts_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], at_once: int, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("file")
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(at_once)).to(getattr(torch, kind))
    row = torch.arange(3).to(whole.dtype)
    save_file({"W": whole, "b": row}, folder / "some.safetensors")
    np.savez(folder / "some.npz", W=whole.numpy(), b=row.numpy())
    np.savez_compressed(folder / "turned.npz", W=np.asfortranarray(whole.numpy()), b=row.numpy())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tensors, "AT_ONCE", at_once)
        files = open_safetensors(folder / "some.safetensors"), open_npz(folder / "some.npz")
        for file in (*files, open_npz(folder / "turned.npz")):
            assert (file.shapes, set(file.dtypes.values())) == ({"W": shape, "b": (3,)}, {whole.dtype})
            for dtype in (torch.float32, torch.bfloat16):
                assert torch.equal(file.read("W", dtype), whole.to(dtype))
                turned = file.read("W", dtype, transposed=True)
                assert torch.equal(turned, whole.to(dtype).T)
                assert turned.is_contiguous()
                assert torch.equal(file.read("b", dtype), row.to(dtype))


def test_what_was_read_outlives_its_file(tmp_path: Path) -> None:
    """A file that is replaced after reading does not change, or end, whoever has read it."""
    path = tmp_path / "some.safetensors"
    save_file({"W": torch.ones(300, 400)}, path)
    read = open_safetensors(path).read("W", torch.float32)
    path.write_bytes(bytes(path.stat().st_size))
    path.write_bytes(b"")
    assert float(read.sum()) == 120_000


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    save_file({"W": torch.ones(2, 2, dtype=torch.int8)}, tmp_path / "some.safetensors")
    with pytest.raises(SettingError, match="W I8"):
        open_safetensors(tmp_path / "some.safetensors")
    for kind in (np.dtype(np.int64), np.dtype(">f4")):
        np.savez(tmp_path / "some.npz", W=np.ones(3, dtype=kind))
        with pytest.raises(SettingError, match=f"W {kind}"):
            open_npz(tmp_path / "some.npz")


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"W": torch.ones(30, 40)}, path)
    file = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptArtifact, match="W cannot be read: it ends 8 bytes early"):
        file.read("W", torch.float32)


def test_what_is_no_matrix_is_not_transposed(tmp_path: Path) -> None:
    save_file({"W": torch.ones(2, 2, 2)}, tmp_path / "some.safetensors")
    with pytest.raises(CorruptArtifact, match="W has 3 axes"):
        open_safetensors(tmp_path / "some.safetensors").read("W", torch.float32, transposed=True)
