"""The subject we train ourselves: a small GPT-NeoX and its byte-level BPE, from a seed, in a fixed number of steps.

In: the texts of the train split. Out: a Hugging Face folder, log-spaced checkpoints and the training curve.
Invariant: the result depends on the texts and the spec alone (on one machine and thread count, to the bit), and no
text of another split is fitted on; held-out text is only measured.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.seeds import derive, generator, torch_generator
from nlrewrite.specs import TinySubject

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from nlrewrite.steps import Running

END_OF_TEXT = "<|endoftext|>"
WARM_UP = 20
HELD_OUT_WINDOWS = 64


def train(spec: TinySubject, texts: Sequence[str], held_out: Sequence[str], out: Path, running: "Running") -> None:
    import torch
    from safetensors.torch import save_file
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    tokenizer = train_tokenizer(texts, spec.vocabulary)
    save_tokenizer(tokenizer, out)
    stream_N = token_stream(tokenizer, texts)
    held_out_N = token_stream(tokenizer, held_out)
    if len(stream_N) <= spec.context + 1 or len(held_out_N) <= spec.context + 1:
        raise SettingError(
            f"the text is too short to train on: {len(stream_N)} and {len(held_out_N)} tokens in the train and the "
            f"explain split, a window needs {spec.context + 2}. Give more text or lower --set subject.context"
        )
    model = fresh_model(spec, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    draws = generator(spec.seed, "subject", "windows")
    checkpoints = checkpoint_steps(spec.steps)
    (out / "checkpoints").mkdir()
    curve = []
    loss_sum, loss_steps = 0.0, 0
    with running.progress.stage("train the subject", spec.steps) as advance:
        for step in range(spec.steps + 1):
            if step in checkpoints:
                save_file(model.state_dict(), out / "checkpoints" / f"step-{step:08d}.safetensors")
                loss = mean_loss(model, held_out_N, spec)
                curve.append({"step": step, "held_out": loss, "train": loss_sum / loss_steps if loss_steps else None})
                loss_sum, loss_steps = 0.0, 0
            if step == spec.steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * schedule(step, spec.steps)
            ids_BT = windows(stream_N, draws.integers(0, len(stream_N) - spec.context - 1, spec.batch), spec.context)
            loss = token_losses(model, ids_BT).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss_sum, loss_steps = loss_sum + loss.item(), loss_steps + 1
            advance(1, f"loss {loss_sum / loss_steps:.3f}" if step % 10 == 0 else "")
    model.save_pretrained(out)
    summary = {
        "curve": curve,
        "held_out_loss": curve[-1]["held_out"],
        "unigram_entropy": unigram_loss(stream_N, held_out_N, spec.vocabulary),
        "train_tokens": len(stream_N),
        "tokens_seen": spec.steps * spec.batch * spec.context,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    (out / "training.json").write_text(json.dumps(summary, indent=1))


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", out: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
    wrapped.save_pretrained(out)


def token_stream(tokenizer: "Tokenizer", texts: Sequence[str]) -> np.ndarray:
    """All texts as one stream, each after an end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces = [[end, *encoding.ids] for encoding in tokenizer.encode_batch_fast(list(texts))]
    return np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces]) if pieces else np.zeros(0, np.int64)


def fresh_model(spec: TinySubject, tokenizer: "Tokenizer") -> Any:
    """An untrained model whose weights come from our own generator."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    end = tokenizer.token_to_id(END_OF_TEXT)
    config = GPTNeoXConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.width // 32,
        intermediate_size=4 * spec.width,
        max_position_embeddings=max(2 * spec.context, 512),
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=end,
        eos_token_id=end,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws its own weights first; ours replace them below
        torch.manual_seed(derive(spec.seed, "subject", "unused"))
        model = GPTNeoXForCausalLM(config)
    draws = torch_generator(spec.seed, "subject", "weights")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.02, generator=draws)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model.train()


def windows(stream_N: np.ndarray, starts_B: np.ndarray, context: int) -> "torch.Tensor":
    import torch

    return torch.from_numpy(stream_N[starts_B[:, None] + np.arange(context + 1)])


def token_losses(model: Any, ids_BT: "torch.Tensor") -> "torch.Tensor":
    import torch

    logits = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")


def mean_loss(model: Any, stream_N: np.ndarray, spec: TinySubject) -> float:
    """Loss on evenly spaced windows of `stream_N`."""
    import torch

    count = min(HELD_OUT_WINDOWS, len(stream_N) // (spec.context + 1))
    starts = np.linspace(0, len(stream_N) - spec.context - 2, count).astype(np.int64)
    with torch.no_grad():
        losses = [token_losses(model, windows(stream_N, part, spec.context)) for part in np.array_split(starts, 4)]
    return torch.cat(losses).mean().item()


def unigram_loss(train_N: np.ndarray, held_out_N: np.ndarray, vocabulary: int) -> float:
    """What a model that knows only how frequent each token is loses on the held-out stream."""
    counts = np.bincount(train_N, minlength=vocabulary).astype(np.float64) + 1
    return float(-np.log(counts / counts.sum())[held_out_N].mean())


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.55 + 0.45 * math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP))


def checkpoint_steps(steps: int) -> set[int]:
    """0, 1, 2, 4, ... and every tenth of the training, so that late losses lie between close ones."""
    powers = {1 << power for power in range(steps.bit_length()) if 1 << power <= steps}
    return {0} | powers | {round(steps * tenth / 10) for tenth in range(1, 11)}
