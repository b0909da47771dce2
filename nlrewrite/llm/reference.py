"""The engine that is right by construction: one prompt at a time, through the model as transformers runs it.

In: a causal language model and its tokenizer. Out: as `engine.py` says, with the mass of the labels under the whole
vocabulary. It computes in the dtype of the weights (load them in float32 for the truth) and takes logarithms in
float32. Invariant: nothing is shared between two prompts, so that what other engines save cannot be wrong here.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlrewrite.llm import anatomy, decoding
from nlrewrite.llm.engine import TOP, Completion, Outcome, PrefixBlock, Sampling, Scores, Usage


class Reference:
    """One prompt at a time."""

    name = "reference"
    exact_mass = True

    def __init__(self, model: nn.Module, tokenizer: Any, *, top: bool = False) -> None:
        anatomy.refuse_training(model)
        self.usage = Usage()
        self._model: Any = model
        self._tokenizer, self._top = tokenizer, top
        self._longest = anatomy.longest(model)
        self._ends = decoding.ends(model, tokenizer)

    def about(self) -> dict[str, object]:
        import transformers

        return {
            "engine": self.name,
            "model": str(self._model.config.model_type),
            "dtype": str(next(self._model.parameters()).dtype).removeprefix("torch."),
            "attention": str(self._model.config._attn_implementation),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @torch.inference_mode()
    def digits(self, block: PrefixBlock) -> Scores:
        started = time.perf_counter()
        labels = torch.tensor(block.labels, device=self._device)
        logp_NK = np.full((len(block), len(block.labels)), np.nan, dtype=np.float32)
        logmass_N = np.full(len(block), np.nan, dtype=np.float32)
        top_NK = np.zeros(logp_NK.shape, dtype=bool)
        outcome_N = np.full(len(block), Outcome.REFUSED, dtype=np.int8)
        for row in range(len(block)):
            prompt = np.concatenate([block.prefix, block.suffix(row)])
            if self._longest is not None and len(prompt) > self._longest:
                continue
            logits_V = self._next(prompt)
            logp_K = torch.log_softmax(logits_V, dim=-1)[labels]
            logmass = torch.logsumexp(logp_K, dim=-1)
            logp_NK[row] = (logp_K - logmass).cpu().numpy()
            logmass_N[row] = float(logmass)
            likelier_K = (logits_V > logits_V[labels, None]).sum(dim=-1)
            top_NK[row] = (likelier_K < TOP).cpu().numpy()
            outcome_N[row] = Outcome.OK
            self.usage.prompt_tokens += len(prompt)
        self.usage.queries += len(block)
        count_refused(self.usage, int((outcome_N == Outcome.REFUSED).sum()))
        self.usage.seconds += time.perf_counter() - started
        return Scores(logp_NK, logmass_N, outcome_N, top=top_NK if self._top else None)

    @torch.inference_mode()
    def complete(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Completion]:
        started = time.perf_counter()
        result = [self._completion(np.asarray(prompt), sampling) for prompt in prompts]
        self.usage.queries += len(prompts)
        count_refused(self.usage, sum(each.outcome is Outcome.REFUSED for each in result))
        self.usage.seconds += time.perf_counter() - started
        return result

    def close(self) -> None:
        """Nothing is held that the model does not hold."""

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _next(self, prompt: np.ndarray) -> Tensor:
        ids = torch.from_numpy(prompt.astype(np.int64))[None].to(self._device)
        return self._model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()

    def _completion(self, prompt: np.ndarray, sampling: Sampling) -> Completion:
        refusal = decoding.refused(prompt, self._longest)
        if refusal is not None:
            return refusal
        most = sampling.most if self._longest is None else min(sampling.most, self._longest - len(prompt))
        reply = decoding.Reply(prompt, sampling, self._tokenizer, self._ends, most)
        ids, past = torch.from_numpy(prompt.astype(np.int64))[None].to(self._device), None
        while not reply.finished:
            said = self._model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = said.past_key_values
            decoding.extend([reply], said.logits[:, -1].float(), sampling.temperature)
            ids = ids.new_tensor([reply.tokens[-1:]])
        self.usage.prompt_tokens += len(prompt)
        self.usage.new_tokens += len(reply.tokens)
        return reply.completion()


def count_refused(usage: Usage, refused: int) -> None:
    if refused:
        usage.failed["REFUSED"] = usage.failed.get("REFUSED", 0) + refused
