"""Training the reader: a small Llama from scratch, on lessons of the rule language.

In: a spec, lessons, and how questions are put. Out: the model, and how well it reads sentences it was never taught.
Invariants: everything is drawn from the spec's seed and the step's number, so that a training that was cut off and went
on gives the same bits as one that was not; what it predicts are the probabilities of the text, not of the lessons.

Reading a rule begins with finding the context's last token in the sentence. Left to itself, a model of this size has
not come upon that when one that begins as follows has learned it (docs/reader.md). A token's two forms begin with the
same vector but for one that says which form it is, and half of the heads of the first two layers begin as matchers:
one random map for queries and keys, so that a marked token looks at its like, or where the context comes first, is
looked at. All of it is trained on.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load as unpacked
from safetensors.torch import save as packed

from nlrewrite.language.reading import distributions
from nlrewrite.language.sentence import Rule
from nlrewrite.llm.judging import Answered, Judgement, judge
from nlrewrite.llm.lessons import LAST, Lesson, Stage, Teacher
from nlrewrite.llm.rare import rare_loss
from nlrewrite.llm.rows import last_logits, rows
from nlrewrite.llm.spelling import forms, spelled
from nlrewrite.questions import TrainedReader
from nlrewrite.seeds import derive, torch_generator

if TYPE_CHECKING:
    from nlrewrite.language.prompts import Prompts
    from nlrewrite.progress import Progress

HEAD = 32
THETA = 10_000.0
STILL = 6
"""A head's first frequencies turn within a sentence; a matcher looks at the others."""
MATCHING_LAYERS = 2
WEIGHT, MATCH, FORM = 0.05, 0.14, 0.7
"""Standard deviations at the start: of weights, of matchers, of what tells a token's form."""
COURSE = (Stage(0.1, 3, 0, False, 1), Stage(0.16, 8, 0, False, 3), Stage(0.4, 6, 3), LAST)
SHARED = 16
"""Questions about one sentence in a training step."""
WARM_UP, LEAST_RATE = 50, 0.03
KEPT_EVERY = 100
JUDGED, JUDGED_BY = 96, 96
"""Sentences to judge by, and questions about each."""
STATE = "state"


@dataclass(frozen=True)
class Material:
    """What lessons are made of, as token ids."""

    teacher: Teacher
    prompts: "Prompts"
    quoted: Sequence[np.ndarray]
    """Ids of each token of the subject where it is quoted: one, or many for a token that the reader does not know."""
    marked: Sequence[np.ndarray]
    window: int

    def context(self, position: int, shown: int) -> np.ndarray:
        """Ids of the context that ends at a position, as the prompt shows it."""
        where = self.teacher.contexts.where
        first = position - min(int(where.offset[position]), shown - 1)
        before = [self.quoted[token] for token in where.token[first:position].tolist()]
        return np.concatenate([*before, self.marked[where.token[position]]])

    def questions(self, lessons: Sequence[Lesson], shown: int) -> tuple[list[Any], list[list[Any]]]:
        """Prefixes and suffixes of all questions of the lessons, in their order."""
        prefixes: list[Any] = []
        suffixes: list[list[Any]] = []
        before, behind = self.frame
        for lesson in lessons:
            contexts = [np.concatenate([before, self.context(int(at), shown), behind]) for at in lesson.position_C]
            if self.prompts.order == "explanation":
                prefixes.append(self.prompts.prefix(explanation=lesson.sentence))
                suffixes.append(contexts)
            else:
                prefixes += contexts
                suffixes += [[self.prompts.suffix(explanation=lesson.sentence)]] * len(contexts)
        return prefixes, suffixes

    @cached_property
    def frame(self) -> tuple[np.ndarray, np.ndarray]:
        """What the prompt says before a context and behind it: found on one context, checked on others."""
        where = self.teacher.contexts.where
        texts = self.teacher.contexts.vocabulary.texts
        frame: tuple[np.ndarray, np.ndarray] | None = None
        for position in np.linspace(0, len(where) - 1, 20).astype(np.int64).tolist():
            first = position - min(int(where.offset[position]), self.window - 1)
            shown = self.prompts.shown([texts[token] for token in where.token[first : position + 1]], [-1])
            half = self.prompts.suffix if self.prompts.order == "explanation" else self.prompts.prefix
            whole, inner = half(context=shown), self.context(position, self.window)
            if frame is None:
                at = next(at for at in range(len(whole)) if np.array_equal(whole[at : at + len(inner)], inner))
                frame = whole[:at].astype(np.int64), whole[at + len(inner) :].astype(np.int64)
            assert np.array_equal(whole, np.concatenate([frame[0], inner, frame[1]])), "a context is spelled otherwise"
        assert frame is not None
        return frame


def fresh_model(spec: TrainedReader, tokenizer: Any, texts: Sequence[bytes]) -> Any:
    """An untrained model whose weights come from our own generator; it knows the tokens `texts` in both forms."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.width,
        intermediate_size=4 * spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.width // HEAD,
        num_key_value_heads=spec.width // HEAD,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws its own weights first; ours replace them below
        torch.manual_seed(derive(spec.seed, "reader", "unused"))
        model: Any = LlamaForCausalLM(config)
    model.set_attn_implementation("sdpa")
    draws = torch_generator(spec.seed, "reader", "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, WEIGHT, generator=draws)
            else:
                parameter.fill_(1.0)
        form_FE = torch.randn(2, spec.width, generator=draws) * FORM
        embedding = model.get_input_embeddings().weight.normal_(0.0, 1.0, generator=draws)
        ids_VF = torch.tensor([[tokenizer.vocab[spelled(form)] for form in forms(text)] for text in texts])
        same_VE = torch.randn(len(ids_VF), spec.width, generator=draws)
        for form in range(2):
            embedding[ids_VF[:, form]] = same_VE + form_FE[form]
        for layer in model.model.layers[:MATCHING_LAYERS]:
            _begin_matching(layer.self_attn, form_FE if spec.order == "explanation" else form_FE.flip(0), draws)
    return model.train()


def known(tokenizer: Any, text: bytes) -> bool:
    """Whether the reader has single tokens for a token of the subject."""
    return bool(text) and all(spelled(form) in tokenizer.vocab for form in forms(text))


def _begin_matching(attention: Any, form_FE: torch.Tensor, draws: torch.Generator) -> None:
    """Half of the heads get one map for queries and keys, with which tokens of the second form look for the first.

    In one more, any token looks for its like, so that one before the last may find the condition that names it.
    """
    query, key = attention.q_proj.weight, attention.k_proj.weight
    first_E, second_E = torch.nn.functional.normalize(form_FE, dim=1)
    half = HEAD // 2
    slow = torch.tensor([place for place in range(HEAD) if place % half >= STILL])
    heads = query.shape[0] // HEAD
    matching = max(1, heads // 2)
    for head in range(min(matching + 1, heads)):
        at = head * HEAD
        query[at : at + HEAD] *= 0.1
        key[at : at + HEAD] *= 0.1
        map_HE = torch.randn(len(slow), query.shape[1], generator=draws) * MATCH
        towards_H = torch.nn.functional.normalize(torch.randn(len(slow), generator=draws), dim=0)
        if head == matching:
            query[at + slow] = map_HE
            key[at + slow] = map_HE
        else:
            query[at + slow] = map_HE + torch.outer(towards_H - map_HE @ second_E, second_E)
            key[at + slow] = map_HE + torch.outer(towards_H, first_E)


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What came of it."""

    model: Any
    judgement: Judgement
    control: Judgement
    """Of one who reads the strengths of the same sentences without a fault, and none of their conditions."""
    curve: list[dict[str, float]]
    cpu_seconds: float
    """Of this process, in training and in what was kept of it before."""


def train(spec: TrainedReader, material: Material, tokenizer: Any, progress: "Progress", work: Any = None) -> Trained:
    """`work` keeps what has been done so far, if given."""
    single = [text for text in material.teacher.contexts.vocabulary.ids if known(tokenizer, text)]
    model = fresh_model(spec, tokenizer, single)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    began, spent = time.process_time(), 0.0
    done, curve = 0, list[dict[str, float]]()
    kept = work.read(STATE) if work is not None else None
    if kept is not None:
        done, spent, curve = _restore(kept, model, optimizer)
    losses: list[float] = []
    with progress.stage("train the reader", spec.steps) as advance:
        advance(done, "kept from before" if done else "")
        for step in range(done, spec.steps):
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * schedule(step, spec.steps)
            loss = _loss(model, spec, material, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            advance(1, f"loss {np.mean(losses[-50:]):.3f}" if step % 10 == 0 else "")
            if (step + 1) % KEPT_EVERY == 0 or step + 1 == spec.steps:
                curve.append({"step": step + 1, "loss": float(np.mean(losses))})
                losses.clear()
                if work is not None and step + 1 < spec.steps:
                    state = _state(model, optimizer, step + 1, spent + time.process_time() - began, curve)
                    work.write(STATE, state)
    spent += time.process_time() - began
    lessons = [material.teacher.lesson(number, JUDGED_BY, judging=True) for number in range(JUDGED)]
    judgement = judge(answers(model.eval(), material, lessons), spec.seed)
    return Trained(model, judgement, judge(by_strengths(material, lessons), spec.seed), curve, spent)


def _loss(model: Any, spec: TrainedReader, material: Material, step: int) -> torch.Tensor:
    stage = next(stage for stage in COURSE if step < stage.until * spec.steps)
    shared = min(SHARED, spec.batch)
    sentences = max(1, spec.batch // shared)
    lessons = [material.teacher.lesson(step * sentences + number, shared, stage) for number in range(sentences)]
    logits_NV = last_logits(model, rows(*material.questions(lessons, min(stage.shown, material.window))))
    answer_N = torch.from_numpy(np.concatenate([lesson.digit_C for lesson in lessons]).astype(np.int64))
    tilt_NK = torch.from_numpy(np.concatenate([lesson.tilt_CZ for lesson in lessons]))
    return rare_loss(logits_NV, material.prompts.labels, answer_N, tilt_NK)


def answers(model: Any, material: Material, lessons: Sequence[Lesson], at_once: int = 8) -> list[Answered]:
    found: list[Answered] = []
    for start in range(0, len(lessons), at_once):
        some = lessons[start : start + at_once]
        with torch.no_grad():
            logits_NV = last_logits(model, rows(*material.questions(some, material.window)))
        p_NZ = torch.softmax(logits_NV[:, list(material.prompts.labels)].double(), -1).numpy()
        ends = np.cumsum([len(lesson.digit_C) for lesson in some])[:-1]
        for lesson, p_CZ in zip(some, np.split(p_NZ, ends), strict=True):
            found.append(Answered(p_CZ, lesson.digit_C, lesson.weight_C, material.teacher.names_last(lesson)))
    return found


def by_strengths(material: Material, lessons: Sequence[Lesson]) -> list[Answered]:
    """What the strengths alone would answer, the conditions left out."""
    found: list[Answered] = []
    for lesson in lessons:
        strengths = material.teacher.contexts.levels(Rule(lesson.rule.strengths))
        level_P = np.zeros(len(material.teacher.contexts.where), dtype=np.int64)
        level_P[strengths[0]] = strengths[1]
        p_CZ = distributions()[level_P[lesson.position_C]]
        found.append(Answered(p_CZ, lesson.digit_C, lesson.weight_C, material.teacher.names_last(lesson)))
    return found


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to nearly nothing."""
    warm_up = min(WARM_UP, max(1, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return LEAST_RATE + (1 - LEAST_RATE) * (0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


# -- what is kept of a training that is cut off ------------------------------------------------------------------------


def _state(model: Any, optimizer: torch.optim.AdamW, step: int, spent: float, curve: list[dict[str, float]]) -> bytes:
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach()
        for field, value in optimizer.state[parameter].items():
            tensors[f"{field}/{name}"] = value
    told = {"step": step, "cpu_seconds": spent, "curve": curve}
    return packed(tensors, {"told": json.dumps(told)})


def _restore(kept: bytes, model: Any, optimizer: torch.optim.AdamW) -> tuple[int, float, list[dict[str, float]]]:
    tensors = unpacked(kept)
    header = json.loads(kept[8 : 8 + int.from_bytes(kept[:8], "little")])
    told = json.loads(header["__metadata__"]["told"])
    fields = sorted({name.partition("/")[0] for name in tensors} - {"weight"})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight/{name}"])
            optimizer.state[parameter] = {field: tensors[f"{field}/{name}"] for field in fields}
    return int(told["step"]), float(told["cpu_seconds"]), told["curve"]
