"""Sentences written by a language model, one for each latent, from examples of where it is active.

In: the explain split's text and activations, a model that writes, and where rivals or errors are shown the coder's
decoder. Out: `explanations.parquet`, with the columns of the rule explainer's and the outcome of the question, and
`written.json`, how many questions came to what. Invariants: only the explain split is looked at; a reply without a
sentence is no explanation; a question that fails loses its own latent and no other; what a killed run had been told is
not asked again.

A latent that is active on one token alone, and on most of its occurrences, is said to be so without asking. With
`contrast`, examples of the latents it is most easily confused with are shown beside its own. With `refine`, what the
sentence gets wrong on a part of the documents is shown to the same model, and its edit kept if it proves itself on
the others (`refine.py`). A reply is text and nothing else: it is put in one line, what is not printable is written out,
and it is cut to its most words.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.activations.pairs import ByLatent, read
from nlrewrite.activations.statistics import latents_counted, write_table
from nlrewrite.artifacts import Folder, Work
from nlrewrite.errors import SettingError
from nlrewrite.explain import contrast
from nlrewrite.explain.asking import Drawing, EngineEditor, EngineReader, line
from nlrewrite.explain.examples import Example, Text, counter_examples, examples
from nlrewrite.explain.refine import parts, refine
from nlrewrite.explain.rules import STRONG
from nlrewrite.language import replies
from nlrewrite.language.context import bounded, visible
from nlrewrite.language.prompts import Prompts, prompts
from nlrewrite.language.sentence import STRONGEST, Rule, words, write
from nlrewrite.language.template import filled, template
from nlrewrite.llm.engine import Engine, Outcome, Sampling
from nlrewrite.llm.purse import check_asked
from nlrewrite.questions import PromptSpec, WriteSpec
from nlrewrite.seeds import derive
from nlrewrite.text.positions import positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running

BATCH = 1024
"""Latents whose prompts are handed to the engine at once."""
RIVALS = 5
TOKEN_SHARE = 0.5
"""Of its token's occurrences a latent must be active on so many for the token to say it all."""
TOKENS_A_WORD = 4
LETTERS_A_WORD = 12
_QUOTED = re.compile(r'"(?:\\.|[^"\\])+"')
_WORD = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^\s"]|")+')


@dataclass(frozen=True)
class Written:
    """What became of one latent."""

    sentence: str = ""
    outcome: Outcome = Outcome.SKIPPED
    why_none: str = ""
    energy_explained: float = float("nan")
    edits: int = 0


@dataclass(frozen=True)
class Material:
    """What is known of the explain split."""

    text: Text
    grouped: ByLatent
    token_P: np.ndarray
    """Tokens that are spelled alike are one."""
    seen_V: np.ndarray
    scale_L: np.ndarray
    """A strong activation of each latent."""


def build(spec: WriteSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    from nlrewrite.llm.opening import opened

    latents = latents_counted(inputs["activations"])
    material = materials(inputs, latents)
    rivals = _rivals(spec, inputs, latents)
    engine, tokenizer = opened(inputs["writer"], running.execution)
    try:
        writer = Writer(spec, material, rivals, engine, tokenizer, running)
        found: list[Written] = []
        with running.progress.stage("write", latents) as advance:
            for start in range(0, latents, BATCH):
                found += writer.batch(range(start, min(start + BATCH, latents)))
                advance(min(BATCH, latents - start))
    finally:
        engine.close()
    _save(found, material, out, engine)


def materials(inputs: dict[str, Folder], latents: int) -> Material:
    grouped = read(inputs["activations"]).by_latent(latents)
    where = positions(read_windows(inputs["tokens"], "explain"))
    texts = token_texts(inputs["subject"].root())
    ids = {text: index for index, text in reversed(list(enumerate(texts)))}
    token_P = np.array([ids[text] for text in texts], dtype=np.int32)[where.token]
    scale = [
        np.quantile(grouped.of(latent)[1], STRONG) if len(grouped.of(latent)[1]) else 0 for latent in range(latents)
    ]
    seen_V = np.bincount(token_P, minlength=len(texts))
    return Material(Text(where, texts), grouped, token_P, seen_V, np.array(scale, dtype=np.float32))


class Writer:
    """Writes batches of latents; each batch is kept once it is done."""

    def __init__(
        self,
        spec: WriteSpec,
        material: Material,
        rivals: Sequence[Sequence[int]],
        engine: Engine,
        tokenizer: object,
        running: "Running",
    ) -> None:
        self._spec, self._material, self._rivals, self._engine, self._running = spec, material, rivals, engine, running
        self._replied: list[Outcome] = []
        self._prompts = self._compiled(spec.prompt, tokenizer)
        if spec.contrast and "others" not in self._prompts.fields:
            raise SettingError(
                f"write.contrast={spec.contrast} shows examples of other latents, for which template "
                f"{spec.prompt.name!r} has no place. Use --set write.prompt.name=explain-contrast"
            )
        if spec.refine:
            reading = self._compiled(spec.reading, tokenizer)
            refining = self._compiled(spec.refining, tokenizer)
            sampling = self._sampling
            scales = material.scale_L
            self._editor = EngineEditor(
                engine, refining, sampling, material.text, spec.window, scales, self.sentence_of
            )
            group_P = material.text.where.group
            self._drawing = Drawing(group_P, parts(group_P, spec.seed), spec.seed)
            self._reader = EngineReader(engine, reading, material.text, spec.window, running.progress)

    def batch(self, latents: range) -> list[Written]:
        """What is written of each latent; read from the work that is kept, if it is there."""
        work: Work | None = self._running.work
        name = f"written-{latents.start:08d}"
        kept = work.read(name) if work is not None else None
        found = [Written()] * len(latents)
        asked = list(range(len(latents)))
        if kept is not None:
            rows: list[dict[str, Any]] = json.loads(kept)
            found = [replace(Written(**row), outcome=Outcome(row["outcome"])) for row in rows]
            asked = [row for row, each in enumerate(found) if each.outcome is Outcome.TRANSPORT]  # perhaps it is back
        if asked:
            told = self._told([latents[row] for row in asked])
            for row, each in zip(asked, told, strict=True):
                found[row] = each
            if work is not None:
                work.write(name, json.dumps([asdict(each) for each in found]).encode())
            check_asked(self._replied)
        return found

    def _told(self, latents: Sequence[int]) -> list[Written]:
        found = self._written(latents)
        return self._refined(latents, found) if self._spec.refine else found

    def sentence_of(self, reply: str) -> str | None:
        """The sentence in a reply, in one printable line and cut to its most words; None if there is none."""
        said = replies.sentence(reply)
        return None if said is None else cut(said, self._spec.most_words)

    @property
    def _sampling(self) -> Sampling:
        return Sampling(most=max(64, TOKENS_A_WORD * self._spec.most_words), seed=derive(self._spec.seed, "write"))

    def _compiled(self, prompt: PromptSpec, tokenizer: object) -> Prompts:
        known = prompt if prompt.text else filled(prompt, self._running.execution.template_folder)
        return prompts(template(known), tokenizer, "explanation", name=known.name)

    def _written(self, latents: Sequence[int]) -> list[Written]:
        found: dict[int, Written] = {}
        asked: dict[int, np.ndarray] = {}
        for latent in latents:
            position, value = self._material.grouped.of(latent)
            if len(position) < self._spec.min_active:
                why = f"active on {len(position)} tokens, fewer than {self._spec.min_active}"
                found[latent] = Written(why_none=why)
            elif self._spec.single_token and (token := self._one_token(position)) is not None:
                found[latent] = _of_token(self._material, token, value, float(self._material.scale_L[latent]))
            else:
                asked[latent] = self._prompt(latent)
        completions = self._engine.complete(list(asked.values()), self._sampling) if asked else []
        self._replied = [reply.outcome for reply in completions]
        for latent, reply in zip(asked, completions, strict=True):
            said = self.sentence_of(reply.text) if reply.outcome is Outcome.OK else None
            if said is not None:
                found[latent] = Written(said, Outcome.OK)
            elif reply.outcome is Outcome.OK and replies.refused(reply.text):
                found[latent] = Written(outcome=Outcome.REFUSED, why_none="the reply says that there will be none")
            elif reply.outcome is Outcome.OK:
                found[latent] = Written(outcome=Outcome.UNPARSEABLE, why_none="there is no sentence in the reply")
            else:
                why = reply.why or f"no reply: {reply.outcome.name.lower()}"
                lost = Outcome.TRANSPORT if reply.outcome is Outcome.SKIPPED else reply.outcome  # to be asked again
                found[latent] = Written(outcome=lost, why_none=visible(bounded(why, 200)))
        return [found[latent] for latent in latents]

    def _prompt(self, latent: int) -> np.ndarray:
        spec, material = self._spec, self._material
        own = examples(material.text, material.grouped, latent, spec.examples, spec.window, spec.seed, spec.style)
        given: dict[str, list[str]] = {"examples": [self._line(each, latent) for each in own], "others": []}
        if spec.contrast:
            shown = counter_examples(
                material.text,
                material.grouped,
                latent,
                self._rivals[latent],
                spec.contrast,
                spec.window,
                spec.seed,
            )
            given["others"] = [self._line(each, latent) for each in shown]
        return self._prompts.whole(**{name: given[name] for name in self._prompts.fields})

    def _line(self, example: Example, latent: int) -> str:
        """An example as it is shown: the text with its marked tokens, and how strong the latent is on each of them."""
        return line(self._prompts, example, float(self._material.scale_L[latent]))

    def _one_token(self, position: np.ndarray) -> int | None:
        """The one token that a latent is active on, if its text says it all."""
        token = int(self._material.token_P[position[0]])
        if not self._material.text.texts[token] or (self._material.token_P[position] != token).any():
            return None
        return token if len(position) >= TOKEN_SHARE * self._material.seen_V[token] else None

    def _refined(self, latents: Sequence[int], found: list[Written]) -> list[Written]:
        rows = [row for row, each in enumerate(found) if each.outcome is Outcome.OK]
        chosen = [latents[row] for row in rows]
        cases = [self._drawing.cases(latent, *self._material.grouped.of(latent)) for latent in chosen]
        sentences = [found[row].sentence for row in rows]
        done = refine(chosen, sentences, cases, self._reader, self._editor, self._spec.refine, self._spec.seed)
        for row, each in zip(rows, done, strict=True):
            found[row] = replace(found[row], sentence=each.sentence, edits=each.kept)
        return found


def cut(sentence: str, most_words: int) -> str:
    """As many of the first words as are allowed, and no more letters than that many long words have."""
    found = list(_WORD.finditer(sentence))
    kept = sentence if len(found) <= most_words else sentence[: found[most_words - 1].end()]
    return bounded(kept, LETTERS_A_WORD * most_words)


def _of_token(material: Material, token: int, value: np.ndarray, scale: float) -> Written:
    """The sentence of a latent that is active on one token, in words that the rule reader reads too."""
    level = int(np.clip(round(float(STRONGEST * value.mean()) / scale), 1, STRONGEST))
    said, value = level * scale / STRONGEST, value.astype(np.float64)
    silent = material.seen_V[token] - len(value)
    error = np.square(value - said).sum() + silent * said**2
    sentence = write(Rule(((material.text.texts[token], level),)))
    return Written(sentence, Outcome.SKIPPED, energy_explained=float(1 - error / np.square(value).sum()))


def _rivals(spec: WriteSpec, inputs: dict[str, Folder], latents: int) -> list[list[int]]:
    if not spec.contrast:
        return [[] for _ in range(latents)]
    if "coder" not in inputs:
        raise SettingError(
            f"contrast={spec.contrast} needs the coder, whose decoder says which latents are alike. Set contrast=0"
        )
    from nlrewrite.coders import form

    return contrast.rivals(RIVALS, contrast.by_directions(form.read(inputs["coder"]).dec_LE.numpy(), RIVALS))


def _save(found: list[Written], material: Material, out: Path, engine: Engine) -> None:
    sentences = [each.sentence for each in found]
    columns = {
        "latent": np.arange(len(found), dtype=np.int32),
        "sentence": np.array(sentences, dtype=object),
        "quotes": np.array([len(_QUOTED.findall(sentence)) for sentence in sentences], dtype=np.int32),
        "words": np.array([words(sentence) for sentence in sentences], dtype=np.int32),
        "scale": np.where([bool(sentence) for sentence in sentences], material.scale_L, 0).astype(np.float32),
        "energy_explained": np.array([each.energy_explained for each in found], dtype=np.float64),
        "why_none": np.array([each.why_none for each in found], dtype=object),
        "outcome": np.array([each.outcome.name.lower() for each in found], dtype=object),
        "edits": np.array([each.edits for each in found], dtype=np.int32),
    }
    write_table(columns, out / "explanations.parquet")
    counts = {each.name.lower(): sum(one.outcome is each for one in found) for each in Outcome}
    unasked = sum(bool(each.sentence) and each.outcome is Outcome.SKIPPED for each in found)
    told = {"outcomes": counts, "said unasked": unasked, "engine": engine.about()}
    (out / "written.json").write_text(json.dumps(told, indent=1, default=str) + "\n", encoding="utf-8")
