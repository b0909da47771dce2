"""Texts as vectors: the mean hidden state of a causal language model over a text's tokens.

In: a model with its tokenizer, or the subject's folder. Out: an embedder for the embedding score. Invariant: a text's
vector depends on the text alone, whatever else is embedded with it. A causal model's mean state says what a text is
about poorly; it is here because it is always there, and whoever has a better embedder hands that in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.artifacts import Folder
from nlrewrite.execution import Execution

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AT_ONCE = 32


@dataclass(frozen=True)
class MeanState:
    """Mean over tokens of the last layer's hidden states; long texts are cut to what the model takes."""

    model: Any
    tokenizer: "Tokenizer"
    longest: int

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        encoded = self.tokenizer.encode_batch([text or " " for text in texts], add_special_tokens=False)
        rows = [(each.ids or [0])[: self.longest] for each in encoded]
        found: list[np.ndarray] = []
        with torch.inference_mode():
            for start in range(0, len(rows), AT_ONCE):
                some = rows[start : start + AT_ONCE]
                most = max(len(row) for row in some)
                ids = torch.tensor([row + [0] * (most - len(row)) for row in some], device=self.model.device)
                inside = torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in some], device=ids.device)
                states = self.model(ids, attention_mask=inside, output_hidden_states=True).hidden_states[-1].float()
                means = (states * inside[..., None]).sum(1) / inside.sum(1, keepdim=True)
                found.append(means.cpu().numpy())
        return np.concatenate(found)


def of_subject(folder: Folder, execution: Execution) -> MeanState:
    """The subject itself as an embedder."""
    from nlrewrite.subject import load
    from nlrewrite.text.tokenizer import load_tokenizer

    model: Any = load.model(folder, execution)
    longest = int(getattr(model.config, "max_position_embeddings", 1024))
    return MeanState(model, load_tokenizer(folder.root()), longest)
