"""The engine that vLLM runs in this process: continuous batching over paged keys and values, prefixes from its cache.

In: a model folder (safetensors and a fast tokenizer), blocks and prompts of token ids. Out: `Scores` and `Completion`s.
Two modes. `generate` asks for the log-probabilities of exactly the labels (never for the k likeliest tokens, which may
hold none of them) and knows their mass. `pooling` keeps the labels' rows of the head alone: least work, no mass, and no
text. Invariants: a question whose labels did not all come back has no answer; one engine is alive at a time, for vLLM's
process groups are global; the process's random generators and its number of threads are left as they were.

vllm is imported by the constructor alone (`vllm_process.py`), and only then.
"""

import gc
import hashlib
import importlib
import logging
import platform
import time
import weakref
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.llm import vllm_folder, vllm_process
from nlrewrite.llm.engine import TOP, Completion, Outcome, PrefixBlock, Sampling, Scores, Usage
from nlrewrite.seeds import derive

log = logging.getLogger(__name__)

Mode = Literal["generate", "pooling"]

CPU_BLOCK = 32
"""The smallest block of vLLM's attention on a CPU; its default of 128 computes more of each prefix again."""
CPU_CACHE = 1 << 30


class Vllm:
    """One model in vLLM, in this process."""

    name = "vllm"
    _alive: ClassVar["weakref.ref[Vllm] | None"] = None

    def __init__(
        self,
        folder: Path,
        *,
        mode: Mode = "generate",
        labels: Sequence[int] = (),
        dtype: str = "float32",
        quantisation: str = "",
        device: str = "cpu",
        gpus: int | None = None,
        longest: int | None = None,
        sequences: int = 512,
        tokens: int = 16_384,
        cache: int | None = None,
        eager: bool | None = None,
        top: bool = False,
        dummy: bool = False,
    ) -> None:
        """`labels` are those of all blocks, for pooling alone, which takes them from its first block if they are not
        given; `gpus` share the model (unset: all that can be seen); one step takes at most `sequences` and `tokens`;
        `cache` is bytes for keys and values (unset: what a GPU has left); `top` asks, a second time, which labels are
        among the likeliest tokens; `dummy` draws the weights at random, for measuring a shape's speed."""
        self.mode: Mode = mode
        self.exact_mass = mode == "generate"
        self.usage = Usage()
        self._folder, self._labels, self._top = folder, tuple(int(each) for each in labels), top
        self._dtype, self._quantisation, self._device = dtype, quantisation, device
        self._sequences, self._tokens, self._cache, self._eager = sequences, tokens, cache, eager
        self._format = "dummy" if dummy else "safetensors"
        self._llm: Any = None
        self._closed = False
        self._check_settings(gpus)
        self._longest = vllm_folder.longest(folder, longest)
        self._vllm = vllm_process.imported(on_cpu=device == "cpu")
        vllm_process.refuse_borrowed(self._vllm, vllm_folder.architecture(folder))
        if device == "cpu":
            vllm_process.refuse_heads(vllm_folder.head_width(folder))
        self._gpus = gpus or (1 if device == "cpu" else vllm_process.visible_gpus())
        if mode == "generate" or self._labels:
            self._make()

    def _make(self) -> None:
        on_cpu = self._device == "cpu"
        block = CPU_BLOCK if on_cpu else None
        pooling = self.mode == "pooling"
        with vllm_process.kept():
            self._llm = self._vllm.LLM(
                model=str(self._folder),
                runner="pooling" if pooling else "generate",
                convert="classify" if pooling else "none",
                load_format=self._format,
                trust_remote_code=False,
                dtype=self._dtype,
                quantization=self._quantisation or None,
                tensor_parallel_size=self._gpus,
                max_model_len=self._longest,
                max_num_seqs=self._sequences,
                max_num_batched_tokens=max(self._tokens, self._longest),
                enable_prefix_caching=True,
                enforce_eager=on_cpu if self._eager is None else self._eager,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                hf_overrides=self._overrides(),
                seed=0,
                **({"block_size": block} if block else {}),
                **({"kv_cache_memory_bytes": self._cache or CPU_CACHE} if on_cpu or self._cache else {}),
            )
        Vllm._alive = weakref.ref(self)
        self._check_engine(block)

    # -- the protocol --------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, object]:
        config = self._open(self._labels).llm_engine.vllm_config
        return {
            "engine": self.name,
            "mode": self.mode,
            "versions": {
                "vllm": str(self._vllm.__version__),
                "torch": metadata.version("torch"),
                "transformers": metadata.version("transformers"),
            },
            "model": Path(config.model_config.model).name,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "head": str(config.model_config.head_dtype).removeprefix("torch."),
            "quantisation": config.model_config.quantization or "",
            "device": self._device if self._device == "cpu" else vllm_process.gpu_name(),
            "machine": platform.machine(),
            "gpus": self._gpus,
            "block": self._block,
            "longest": self._longest,
            "sequences": config.scheduler_config.max_num_seqs,
            "tokens": config.scheduler_config.max_num_batched_tokens,
            "weights": self._format,
            "eager": bool(config.model_config.enforce_eager),
        }

    def digits(self, block: PrefixBlock) -> Scores:
        llm = self._open(block.labels)
        self._check_labels(block.labels)
        started = time.perf_counter()
        room = self._longest - (self.mode == "generate")  # the token that is drawn, and thrown away, takes a position
        fits = block.lengths + len(block.prefix) <= room
        asked = np.flatnonzero(fits)
        prefix: list[int] = block.prefix.tolist()
        prompts = [{"prompt_token_ids": prefix + block.suffix(int(index)).tolist()} for index in asked]

        told = np.full((len(block), len(block.labels)), np.nan)
        top = np.zeros(told.shape, dtype=bool) if self._top and self.exact_mass else None
        outputs = self._run(llm, prompts, block.labels)
        for index, output in zip(asked, outputs, strict=True):
            told[index] = of_labels(output, block.labels) if self.exact_mass else output.outputs.data.numpy()
        if top is not None:
            for index, output in zip(asked, self._run(llm, prompts, None), strict=True):
                top[index] = np.isin(block.labels, output.outputs[0].logprobs.token_ids[1 : TOP + 1])

        known = np.isfinite(told).all(axis=1)
        told[~known] = np.nan
        with np.errstate(invalid="ignore"):
            logmass_N1 = np.logaddexp.reduce(told, axis=1, keepdims=True)
        outcome = np.where(known, Outcome.OK, np.where(fits, Outcome.UNPARSEABLE, Outcome.REFUSED)).astype(np.int8)
        self._count(len(block), outputs, sum(len(each["prompt_token_ids"]) for each in prompts), outcome, started)
        self._tell_cache(len(prefix), outputs)
        return Scores(
            logp=(told - logmass_N1).astype(np.float32),
            logmass=logmass_N1[:, 0].astype(np.float32) if self.exact_mass else None,
            outcome=outcome,
            top=top,
        )

    def complete(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Completion]:
        """All prompts are handed over at once, so that vLLM can keep its batch full; each draws from its own seed."""
        if self.mode == "pooling":
            raise SettingError("the pooling mode keeps only rows of the head and cannot write. Use mode=generate")
        llm = self._open()
        started = time.perf_counter()
        result = [self._refused(prompt) for prompt in prompts]
        asked = [index for index, refusal in enumerate(result) if refusal is None]
        outputs: list[Any] = self._watched(
            llm,
            lambda: llm.generate(
                [{"prompt_token_ids": prompts[index].tolist()} for index in asked],
                [self._sampling(sampling, prompts[index]) for index in asked],
                use_tqdm=False,
            ),
        )
        for index, output in zip(asked, outputs, strict=True):
            result[index] = self._completion(output, sampling)
        completions = [each for each in result if each is not None]
        outcome = np.array([each.outcome for each in completions], dtype=np.int8)
        self._count(len(prompts), outputs, sum(len(prompts[index]) for index in asked), outcome, started)
        self.usage.new_tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
        return completions

    def close(self) -> None:
        """Frees the model and vLLM's process groups, so that another engine can be made."""
        self._closed = True
        if self._llm is None:
            return
        llm, self._llm = self._llm, None
        Vllm._alive = None
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        importlib.import_module("vllm.distributed.parallel_state").cleanup_dist_env_and_memory()

    # -- asking --------------------------------------------------------------------------------------------------------

    def _run(self, llm: Any, prompts: list[dict[str, list[int]]], labels: tuple[int, ...] | None) -> list[Any]:
        """One new position of each prompt: the labels there, or the likeliest tokens if no labels are given."""
        if self.mode == "pooling":
            params = self._vllm.PoolingParams(use_activation=False)
            return self._watched(llm, lambda: llm.encode(prompts, params, pooling_task="classify", use_tqdm=False))
        params = self._vllm.SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            flat_logprobs=True,
            skip_clone=True,
            **({"logprob_token_ids": list(labels)} if labels else {"logprobs": TOP}),
        )
        return self._watched(llm, lambda: llm.generate(prompts, params, use_tqdm=False))

    def _watched(self, llm: Any, ask: Any) -> list[Any]:
        """The answers; if asking is broken off, what is still queued is dropped, or the next call would be given it."""
        try:
            with vllm_process.kept():
                return ask()
        finally:
            if left := list(llm.llm_engine.output_processor.request_states):
                llm.llm_engine.abort_request(left, internal=True)

    def _sampling(self, sampling: Sampling, prompt: np.ndarray) -> Any:
        """Of one prompt: what is drawn follows from the seed and the prompt, not from what else is asked."""
        name = hashlib.sha256(np.asarray(prompt, dtype="<i4").tobytes()).hexdigest()
        return self._vllm.SamplingParams(
            max_tokens=sampling.most,
            temperature=sampling.temperature,
            seed=derive(sampling.seed, "complete", name) >> 32 if sampling.temperature > 0 else None,
            stop=list(sampling.stop) or None,
            stop_token_ids=self._ends,
        )

    def _completion(self, output: Any, sampling: Sampling) -> Completion:
        reply = output.outputs[0]
        tokens = list(reply.token_ids)
        if reply.finish_reason not in ("stop", "length"):
            return Completion("", Outcome.TRANSPORT, complete=False, why=f"vLLM gave it up: {reply.finish_reason}")
        if reply.finish_reason == "length":
            why = f"not ended after {len(tokens)} tokens"
            return Completion(self._decoded(tokens), Outcome.OK, complete=False, why=why)
        if not isinstance(reply.stop_reason, str):
            return Completion(self._decoded(tokens[:-1]), Outcome.OK)
        text = self._decoded(tokens)
        return Completion(text[: min(at for stop in sampling.stop if (at := text.find(stop)) >= 0)], Outcome.OK)

    def _decoded(self, tokens: list[int]) -> str:
        """As the other engines decode: all tokens at once."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _refused(self, prompt: np.ndarray) -> Completion | None:
        if 0 < len(prompt) < self._longest:
            return None
        why = f"the prompt has {len(prompt)} tokens; this engine takes 1 to {self._longest - 1}"
        return Completion("", Outcome.REFUSED, complete=False, why=why)

    def _count(self, queries: int, outputs: list[Any], tokens: int, outcome: np.ndarray, started: float) -> None:
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        self.usage.queries += queries
        self.usage.prompt_tokens += tokens - cached
        self.usage.cached_tokens += cached
        self.usage.seconds += time.perf_counter() - started
        for kind in outcome[outcome != Outcome.OK]:
            name = Outcome(kind).name
            self.usage.failed[name] = self.usage.failed.get(name, 0) + 1

    def _tell_cache(self, prefix: int, outputs: list[Any]) -> None:
        """Whole blocks of the prefix should come from the cache for all questions but the first."""
        aligned = prefix // self._block * self._block
        expected = aligned * (len(outputs) - 1)
        if expected <= 0:
            return
        rate = sum(min(output.num_cached_tokens or 0, aligned) for output in outputs) / expected
        log.log(
            logging.WARNING if rate < 0.9 else logging.DEBUG,
            "prefix cache: %.1f%% of %d tokens for each of %d questions (%d of the prefix's %d fill no block of %d)%s",
            100 * min(rate, 1.0),
            aligned,
            len(outputs),
            prefix - aligned,
            prefix,
            self._block,
            "; the cache is too small: lower sequences, or give it more memory" if rate < 0.9 else "",
        )

    # -- checks --------------------------------------------------------------------------------------------------------

    def _open(self, labels: tuple[int, ...] = ()) -> Any:
        if self._closed:
            raise SettingError("this engine is closed. Make another one")
        if self._llm is None:
            if not labels:
                raise SettingError("the pooling mode has not been told its labels. Give labels, or ask a block first")
            self._labels = labels
            self._check_alone()
            self._make()
        return self._llm

    def _check_alone(self) -> None:
        if Vllm._alive is None:
            return
        other = Vllm._alive()
        if other is not None and other._llm is not None:
            raise SettingError("a process holds one vLLM engine at a time, and one is open. close() it first")
        gc.collect()  # an engine that was dropped without close() must not tear down the process groups of this one

    def _check_settings(self, gpus: int | None) -> None:
        self._check_alone()
        for name in ("config.json", "tokenizer.json"):
            if not (self._folder / name).is_file():
                raise SettingError(f"{self._folder} has no {name}. Save the model and its fast tokenizer there")
        if self._device not in ("cpu", "cuda", "cuda:0"):
            number = self._device.partition(":")[2]
            raise SettingError(
                f"vLLM takes the first of the GPUs it can see: device={self._device}. "
                f"Set CUDA_VISIBLE_DEVICES={number} and --device cuda"
            )
        if self._device == "cpu" and gpus not in (None, 1):
            raise SettingError(f"on a CPU vLLM runs in one process here: gpus={gpus}. Use --device cuda, or gpus=1")

    def _overrides(self) -> dict[str, Any]:
        """The head in float32 whatever the body's dtype: at a logit of 20, bfloat16 is coarser than 0.1."""
        head = {} if self._quantisation else {"head_dtype": "float32"}
        if self.mode == "generate":
            return head
        words = vllm_folder.words(self._folder, self._labels)
        return {**head, "method": "no_post_processing", "classifier_from_token": words}

    def _check_engine(self, block: int | None) -> None:
        config = self._llm.llm_engine.vllm_config
        self._block = int(config.cache_config.block_size)
        assert block in (None, self._block), f"asked for blocks of {block} tokens, got {self._block}"
        assert config.cache_config.enable_prefix_caching, "vLLM has turned its prefix cache off"
        assert config.scheduler_config.max_num_seqs == self._sequences, "vLLM has lowered the number of sequences"
        self._vocabulary = int(config.model_config.get_vocab_size())
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._ends = vllm_folder.ends(self._folder, self._tokenizer.eos_token_id)
        if self.mode == "pooling":
            heard = tuple(self._tokenizer.convert_tokens_to_ids(vllm_folder.words(self._folder, self._labels)))
            if heard != self._labels:
                raise SettingError(
                    f"vLLM's tokenizer takes the labels {self._labels} for {heard}. Use mode=generate with this model"
                )

    def _check_labels(self, labels: tuple[int, ...]) -> None:
        if self.mode == "pooling" and labels != self._labels:
            raise SettingError(
                f"this engine keeps the head's rows of {self._labels} alone, and is asked for {labels}. "
                f"Make one with those labels, or use mode=generate"
            )
        if max(labels) >= self._vocabulary or min(labels) < 0:
            raise SettingError(
                f"labels must be token ids below {self._vocabulary}: {labels}. Use the model's own tokenizer"
            )


# -- answers -----------------------------------------------------------------------------------------------------------


def of_labels(output: Any, labels: tuple[int, ...]) -> np.ndarray | float:
    """Log-probabilities in the labels' order [K]; NaN if one of them did not come back."""
    flat = output.outputs[0].logprobs
    if flat is None:
        return np.nan
    if tuple(flat.token_ids[1:]) == labels:  # the token drawn comes first
        return np.array(flat.logprobs[1:])
    told = dict(zip(flat.token_ids, flat.logprobs, strict=True))
    return np.array([told.get(label, np.nan) for label in labels])
