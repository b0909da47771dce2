"""The fine-tuned simulator: a language model taught to answer with a latent's true digit in a context.

In: a model and its prompts, sentences, contexts, and for each latent the contexts in which it is active with its digit
there. Out: the same model, its weights changed by merged adapters, and how well it tells sentences that it was not
taught by, before and after. Invariants: questions are drawn by cases and the loss undoes it, so that probabilities are
those of the text; a latent is taught by or judged by, never both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nlrewrite.errors import SettingError
from nlrewrite.language.reading import DIGITS
from nlrewrite.llm import lora
from nlrewrite.llm.judging import Answered, Judgement, judge
from nlrewrite.llm.rare import rare_loss, tilt
from nlrewrite.llm.rows import last_logits, rows
from nlrewrite.questions import TuneSpec
from nlrewrite.seeds import generator

if TYPE_CHECKING:
    from nlrewrite.language.prompts import Prompts
    from nlrewrite.progress import Progress


@dataclass(frozen=True)
class Truth:
    """Where one latent is active, and its digit there; in every other context its digit is 0."""

    context: np.ndarray
    digit: np.ndarray


@dataclass(frozen=True)
class Case:
    """Some questions about one latent."""

    latent: int
    context_C: np.ndarray
    digit_C: np.ndarray
    tilt_CZ: np.ndarray
    weight_C: np.ndarray
    """Share of the text that each question stands for."""


@dataclass(frozen=True)
class Tuned:
    before: Judgement
    after: Judgement
    losses: list[float]


def digits(value: np.ndarray, scale: float) -> np.ndarray:
    """Activations above 0 as digits 1..9: ninths of `scale`, rounded up, so that what is active is never 0."""
    return np.clip(np.ceil(value * (DIGITS - 1) / max(scale, 1e-30)), 1, DIGITS - 1).astype(np.int64)


def draw(latent: int, truth: Truth, contexts: int, active: int, inactive: int, draws: np.random.Generator) -> Case:
    """`active` questions where the latent is active and `inactive` where it is not, as far as there are such."""
    if not len(truth.context):
        raise SettingError(f"latent {latent} is active in no context: there is nothing to teach. Leave it out")
    there = np.zeros(contexts, dtype=bool)
    there[truth.context] = True
    active, inactive = min(active, len(truth.context)), min(inactive, contexts - len(truth.context))
    chosen = draws.choice(len(truth.context), active, replace=False)
    others = draws.choice(np.flatnonzero(~there), inactive, replace=False)
    drawn = np.array([inactive, active], dtype=np.float64)
    natural = np.array([contexts - len(truth.context), len(truth.context)], dtype=np.float64)
    tilt_Z = np.repeat(tilt(drawn, natural), [1, DIGITS - 1])
    weight = np.concatenate(
        [np.full(active, natural[1] / max(active, 1)), np.full(inactive, natural[0] / max(inactive, 1))]
    )
    return Case(
        latent,
        np.concatenate([truth.context[chosen], others]),
        np.concatenate([truth.digit[chosen], np.zeros(inactive, np.int64)]),
        np.tile(tilt_Z, (active + inactive, 1)).astype(np.float32),
        weight / weight.sum(),
    )


def split(latents: Sequence[int], held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Latents to teach by, and at least one to judge by."""
    order = generator(seed, "tune", "held-out").permutation(np.asarray(latents)).tolist()
    count = min(len(order) - 1, max(1, round(held_out * len(order))))
    if count < 1:
        raise SettingError(f"fine-tuning needs at least two latents with a sentence: there are {len(order)}")
    return sorted(order[count:]), sorted(order[:count])


def fine_tune(
    model: Any,
    prompts: "Prompts",
    sentences: Sequence[str],
    shown: Sequence[str],
    truths: Sequence[Truth],
    spec: TuneSpec,
    progress: "Progress",
) -> Tuned:
    """Latents without a sentence, or active nowhere, are left out. `model` must attend by "sdpa"; it is changed."""
    known = [latent for latent, sentence in enumerate(sentences) if sentence and len(truths[latent].context)]
    taught, held = split(known, spec.held_out, spec.seed)
    asking = _Asking(prompts, sentences, shown)

    def cases(latents: Sequence[int], *path: str | int) -> list[Case]:
        return [
            draw(each, truths[each], len(shown), spec.active, spec.inactive, generator(spec.seed, *path, each))
            for each in latents
        ]

    judging = cases(held, "tune", "judge")
    before = judge(_answers(model, asking, judging), spec.seed)
    parameters = lora.adapt(model, spec.rank, spec.alpha, spec.seed)
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=0.0)
    losses: list[float] = []
    model.train()
    with progress.stage("fine-tune", spec.steps) as advance:
        for step in range(spec.steps):
            chosen = generator(spec.seed, "tune", "latents", step).choice(
                taught, min(spec.sentences, len(taught)), False
            )
            some = cases([int(each) for each in chosen], "tune", "cases", step)
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * (1 - step / spec.steps)
            logits_NV = last_logits(model, rows(*asking.questions(some)))
            answer_N = torch.from_numpy(np.concatenate([case.digit_C for case in some]))
            tilt_NK = torch.from_numpy(np.concatenate([case.tilt_CZ for case in some]))
            loss = rare_loss(logits_NV, prompts.labels, answer_N, tilt_NK)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
            advance(1, f"loss {np.mean(losses[-20:]):.3f}" if step % 10 == 0 else "")
    model.eval()
    lora.merge(model)
    return Tuned(before, judge(_answers(model, asking, judging), spec.seed), losses)


class _Asking:
    """Questions as prompts, each half rendered once."""

    def __init__(self, prompts: "Prompts", sentences: Sequence[str], shown: Sequence[str]) -> None:
        self._prompts, self._sentences, self._shown = prompts, sentences, shown
        self._known: dict[tuple[str, int], list[int]] = {}

    def questions(self, some: Sequence[Case]) -> tuple[list[list[int]], list[list[list[int]]]]:
        prefixes: list[list[int]] = []
        suffixes: list[list[list[int]]] = []
        for case in some:
            contexts = [self._half("context", int(at)) for at in case.context_C]
            sentence = self._half("explanation", case.latent)
            if self._prompts.order == "explanation":
                prefixes.append(sentence)
                suffixes.append(contexts)
            else:
                prefixes += contexts
                suffixes += [[sentence]] * len(contexts)
        return prefixes, suffixes

    def _half(self, which: str, number: int) -> list[int]:
        if (which, number) not in self._known:
            text = (self._sentences if which == "explanation" else self._shown)[number]
            half = self._prompts.prefix if which == self._prompts.order else self._prompts.suffix
            self._known[which, number] = half(**{which: text}).tolist()
        return self._known[which, number]


def _answers(model: Any, asking: _Asking, cases: Sequence[Case]) -> list[Answered]:
    found: list[Answered] = []
    labels = list(asking._prompts.labels)
    for case in cases:
        with torch.no_grad():
            logits_NV = last_logits(model, rows(*asking.questions([case])))
        p_CZ = torch.softmax(logits_NV[:, labels].double(), -1).cpu().numpy()
        found.append(Answered(p_CZ, case.digit_C, case.weight_C, np.zeros(len(p_CZ), dtype=bool)))
    return found
