"""Windows as padded batches of token ids.

In: windows. Out: slices of them that fit in one forward pass, their ids, and which places are positions.
Invariant: what stands behind a window's end cannot be seen from within it, for padding is on the right.
"""

from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.text.tokens import Windows

if TYPE_CHECKING:
    import torch


def batches(windows: Windows, batch_tokens: int) -> list[slice]:
    """Consecutive windows, at most `batch_tokens` padded tokens at a time."""
    rows = max(1, batch_tokens // (windows.tokens.shape[1] - 1))
    return [slice(start, min(start + rows, len(windows))) for start in range(0, len(windows), rows)]


def padded(windows: Windows) -> "torch.Tensor":
    """Input ids [windows, longest]; what stands behind a window's end cannot be seen from within it."""
    import torch

    return torch.from_numpy(windows.tokens[:, : int(windows.lengths.max())].astype(np.int64))


def inside(windows: Windows) -> "torch.Tensor":
    """Which of the padded positions are positions."""
    import torch

    return torch.from_numpy(np.arange(int(windows.lengths.max()))[None, :] < windows.lengths[:, None])
