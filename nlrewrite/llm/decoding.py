"""Turning next-token logits into a reply: drawing tokens, hearing where a reply ends, and cutting it there.

In: logits of the next token for each unfinished reply. Out: `Completion`s. Invariant: a reply depends on its prompt,
the sampling and the logits, never on what else is in the batch: its generator is named by the seed and the prompt, and
a draw is one uniform number read off the cumulative probabilities, so that engines that agree in logits agree in text.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlrewrite.llm.engine import Completion, Outcome, Sampling
from nlrewrite.seeds import torch_generator


def ends(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that end a reply."""
    found: set[int] = set()
    for told in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(told, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)


class Reply:
    """One reply as it grows."""

    def __init__(self, prompt: np.ndarray, sampling: Sampling, tokenizer: Any, ends: frozenset[int], most: int) -> None:
        name = hashlib.sha256(np.asarray(prompt, dtype="<i4").tobytes()).hexdigest()
        self.generator = torch_generator(sampling.seed, "complete", name)
        self.tokens: list[int] = []
        self.finished = most <= 0
        self._sampling, self._tokenizer, self._ends, self._most = sampling, tokenizer, ends, most
        self._text: str | None = None

    def add(self, token: int) -> None:
        self.tokens.append(token)
        if token in self._ends:
            self._text, self.finished = self._decoded(self.tokens[:-1]), True
        elif self._sampling.stop:
            text = self._decoded(self.tokens)
            found = [at for stop in self._sampling.stop if (at := text.find(stop)) >= 0]
            if found:
                self._text, self.finished = text[: min(found)], True
        self.finished = self.finished or len(self.tokens) >= self._most

    def completion(self) -> Completion:
        if self._text is not None:
            return Completion(self._text, Outcome.OK)
        why = f"not ended after {len(self.tokens)} tokens"
        return Completion(self._decoded(self.tokens), Outcome.OK, complete=False, why=why)

    def _decoded(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def extend(replies: Sequence[Reply], logits_NV: Tensor, temperature: float) -> list[int]:
    """Add the next token to each unfinished reply, and tell what was drawn for all."""
    if temperature <= 0:
        tokens = logits_NV.argmax(dim=-1).tolist()
    else:
        drawn = [torch.rand(1, generator=reply.generator, dtype=torch.float64) for reply in replies]
        cumulative_NV = torch.softmax(logits_NV.double() / temperature, dim=-1).cumsum(dim=-1)
        at_N1 = torch.stack(drawn).to(logits_NV.device) * cumulative_NV[:, -1:]
        tokens = torch.searchsorted(cumulative_NV, at_N1, right=True)[:, 0].clamp(max=logits_NV.shape[1] - 1).tolist()
    for reply, token in zip(replies, tokens, strict=True):
        if not reply.finished:
            reply.add(token)
    return tokens


def refused(prompt: np.ndarray, longest: int | None) -> Completion | None:
    """The answer to a prompt that leaves no room for one, or None."""
    if not len(prompt):
        return Completion("", Outcome.REFUSED, complete=False, why="the prompt is empty")
    if longest is not None and len(prompt) >= longest:
        why = f"the prompt has {len(prompt)} tokens and the model {longest} positions"
        return Completion("", Outcome.REFUSED, complete=False, why=why)
    return None
