"""Scripted engines, a tokenizer of bytes, and artifacts of a small text, for tests of asking a language model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nlrewrite.activations.pairs import Active
from nlrewrite.activations.statistics import write_latents
from nlrewrite.execution import Execution
from nlrewrite.llm.engine import Completion, Outcome, PrefixBlock, Sampling, Scores, Usage
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.steps import Running

END = "<end>"
WORDS = (" of", " the", " cat", " dog", " sat", " on", " mat", " 7", ".", "\n")


def tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: an end token, every byte, and some words as tokens of their own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {END: 0, **{letter: index + 1 for index, letter in enumerate(letters)}}
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges: list[tuple[str, str]] = []
    for word in words:
        spelled = level.pre_tokenize_str(word)[0][0]
        for stop in range(2, len(spelled) + 1):
            vocabulary.setdefault(spelled[:stop], len(vocabulary))
            if (spelled[: stop - 1], spelled[stop - 1]) not in merges:
                merges.append((spelled[: stop - 1], spelled[stop - 1]))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = level
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END)


class Scripted:
    """An engine whose replies are a function of the prompt's text, and its probabilities of prefix and suffix."""

    name, exact_mass = "scripted", False

    def __init__(
        self,
        tokenizer: Any,
        reply: Callable[[str], str | Completion] = lambda prompt: "",
        chance: Callable[[str, str], float | None] = lambda prefix, suffix: 0.5,
    ) -> None:
        self.usage, self.prompts, self.blocks, self.closed = Usage(), list[str](), 0, False
        self.batches: list[int] = []
        self._tokenizer, self._reply, self._chance = tokenizer, reply, chance

    def about(self) -> dict[str, object]:
        return {"engine": self.name}

    def digits(self, block: PrefixBlock) -> Scores:
        """The last label has the chance that the script gives, the others share the rest; None: no answer."""
        self.blocks += 1
        prefix = self._tokenizer.decode(block.prefix.tolist())
        logp = np.full((len(block), len(block.labels)), np.nan, dtype=np.float32)
        outcome = np.full(len(block), Outcome.TRANSPORT, dtype=np.int8)
        for row in range(len(block)):
            chance = self._chance(prefix, self._tokenizer.decode(block.suffix(row).tolist()))
            if chance is not None:
                others = (1 - chance) / (len(block.labels) - 1)
                logp[row] = np.log([others] * (len(block.labels) - 1) + [chance])
                outcome[row] = Outcome.OK
        return Scores(logp, None, outcome)

    def complete(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Completion]:
        self.batches.append(len(prompts))
        found: list[Completion] = []
        for prompt in prompts:
            self.prompts.append(self._tokenizer.decode(prompt.tolist()))
            reply = self._reply(self.prompts[-1])
            found.append(reply if isinstance(reply, Completion) else Completion(reply, Outcome.OK))
        return found

    def close(self) -> None:
        self.closed = True


class Kept:
    """Unfinished work in memory."""

    def __init__(self) -> None:
        self.pieces: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        return self.pieces.get(name)

    def write(self, name: str, data: bytes) -> None:
        self.pieces[name] = data


class Here:
    """Files of an artifact in a local folder."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.manifest = folder, SimpleNamespace(spec=spec)

    def path(self, name: str) -> Path:
        return self.folder / name

    def root(self) -> Path:
        return self.folder


def running(work: Kept | None = None, **execution: Any) -> Running:
    return Running(Execution(**execution), Progress(), work)  # type: ignore[arg-type]


def artifacts(folder: Path, active: dict[str, np.ndarray], windows: int = 30, length: int = 20) -> dict[str, Any]:
    """subject, tokens, activations-explain and activations-calibrate; `active` gives each split's dense [L, P].

    The text is WORDS at random, the same ids on both splits for a seed; documents of the splits differ.
    """
    from safetensors.numpy import save_file

    words = tokenizer(WORDS)
    subject, tokens = Here(folder / "subject"), Here(folder / "tokens")
    words.save_pretrained(subject.root())
    made: dict[str, Any] = {"subject": subject, "tokens": tokens}
    for number, split in enumerate(("explain", "calibrate")):
        ids = token_ids(words, split, windows, length)
        columns = {
            "tokens": np.pad(ids, ((0, 0), (0, 1))),
            "lengths": np.full(windows, length, dtype=np.int32),
            "document": (number * windows + np.arange(windows)).astype(np.int32),
            "group": (number * windows + np.arange(windows) // 2).astype(np.int32),
            "start": np.zeros(windows, dtype=np.int32),
        }
        save_file(columns, tokens.path(f"{split}.safetensors"))
        dense = active[split].astype(np.float32)
        stored = Active(np.tile(np.arange(len(dense), dtype=np.int32), (dense.shape[1], 1)), dense.T.copy())
        here = made[f"activations-{split}"] = Here(folder / split, split=split)
        save_file({"latents": stored.latents, "values": stored.values}, here.path("pairs.safetensors"))
        write_latents(stored.by_latent(len(dense)), dense.shape[1], len(dense), here.root())
    return made


def token_ids(words: Any, split: str, windows: int = 30, length: int = 20) -> np.ndarray:
    """int32 [W, T]: random words, each one token."""
    ids = np.array([words.encode(word, add_special_tokens=False) for word in WORDS]).ravel()
    return ids[generator(0, "words", split).integers(0, len(WORDS), (windows, length))].astype(np.int32)


def is_word(split: str, word: str, windows: int = 30, length: int = 20) -> np.ndarray:
    """bool [P]: where a word stands in the text of `artifacts`."""
    words = tokenizer(WORDS)
    return (token_ids(words, split, windows, length) == words.encode(word, add_special_tokens=False)[0]).ravel()


def reader(folder: Path, positions: int = 8192) -> Here:
    """A random small Llama with the tokenizer of bytes, as a trained reader is stored."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    here = Here(folder)
    here.path("reader.json").write_text(json.dumps({"kind": "trained"}))
    return here
