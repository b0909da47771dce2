"""The active latents of rows, as a coder finds them: pairs of a latent and its value, row after row.

In: pairs in the order of their rows. Out: the same as a ragged list, or padded to a table. Invariant: all kinds of
activation hand over this one form, so that everything behind it is written once.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Code:
    """Pairs of N rows; those of row n are `offsets[n]:offsets[n + 1]`. A value of zero is no activation."""

    indices: "Tensor"
    """[P] int64: latents."""
    values: "Tensor"
    """[P]"""
    offsets: "Tensor"
    """[N + 1] int64"""
    width: int | None = None
    """Pairs of every row, where all have as many."""

    @classmethod
    def table(cls, values_NK: "Tensor", indices_NK: "Tensor") -> "Code":
        """The code whose rows all have K pairs."""
        import torch

        count, k = indices_NK.shape
        offsets = torch.arange(0, count * k + 1, k, device=indices_NK.device)
        return cls(indices_NK.reshape(-1), values_NK.reshape(-1), offsets, k)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> "Tensor":
        return self.offsets[1:] - self.offsets[:-1]

    def rows(self) -> "Tensor":
        """[P]: the row of each pair."""
        import torch

        return torch.repeat_interleave(torch.arange(len(self), device=self.offsets.device), self.lengths)

    def padded(self) -> "tuple[Tensor, Tensor]":
        """Values and indices [N, K], K the longest row's; short rows end in latent 0 with value zero."""
        import torch

        if self.width is not None:
            return self.values.view(len(self), self.width), self.indices.view(len(self), self.width)
        longest = int(self.lengths.max()) if len(self) else 0
        place = torch.arange(longest, device=self.offsets.device) < self.lengths[:, None]
        values = self.values.new_zeros(len(self), longest)
        indices = self.indices.new_zeros(len(self), longest)
        values[place], indices[place] = self.values, self.indices
        return values, indices
