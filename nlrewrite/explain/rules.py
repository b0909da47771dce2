"""The rule explainer: learns a sentence of the rule language for every latent, greedily, against held-out documents.

In: the tokens and activations of the explain split. Out: `explanations.parquet`: latent, sentence, quotes, words, the
activation that strength 9 stands for, the share of the latent's energy the sentence accounts for, and why there is none
where there is none. Invariant: a part is added only if it helps on documents it was not chosen on, and a sentence keeps
to its limits of words and quotes.

A latent's activations, in ninths of a strong one, are predicted by the level of a rule (`language/sentence.py`). Each
round adds the token or the change that lowers the squared error most; all candidates are compared in a few counts
over the cells (candidate, present level), so a round costs the same for one candidate and for hundreds.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations.collect import ByLatent, read, read_coder_width
from nlrewrite.activations.statistics import write_table
from nlrewrite.artifacts import Folder
from nlrewrite.language.reading import Contexts, distances
from nlrewrite.language.sentence import STRONGEST, Change, Item, Place, Rule, words, write
from nlrewrite.language.vocabulary import KINDS, Vocabulary
from nlrewrite.seeds import generator
from nlrewrite.specs import ExplainSpec
from nlrewrite.text.positions import positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running

CANDIDATE_TOKENS = 16
SCREENED = 5
RIDGE = 2.0  # a part of size d must earn more than RIDGE * d^2
LEAST_SEEN = 4
PATIENCE = 8  # parts refused by the held-out documents before the sentence is done
HELD_OUT_SHARE = 0.3
STRONG = 0.98  # the quantile of a latent's activations that strength 9 stands for
LOWEST, HIGHEST = -STRONGEST, 2 * STRONGEST  # levels beyond these act like these


@dataclass(frozen=True)
class Learned:
    rule: Rule
    scale: float
    energy_explained: float


@dataclass
class Evidence:
    """What all latents of a split share: the contexts, how often each pair of tokens stands together, who is held out."""

    contexts: Contexts
    reach: int
    held_P: np.ndarray
    pairs_seen: np.ndarray = field(init=False)
    places: list[tuple[Place, bool]] = field(init=False)

    def __post_init__(self) -> None:
        self.pairs_seen = np.bincount(self.pair(slice(None)), minlength=self._width * len(self.contexts.vocabulary))
        near, second, recent = Place(1), Place(2), Place(self.reach, within=True)
        self.places = [(near, False), (near, True), (second, False), (recent, False)]

    def pair(self, position: np.ndarray | slice) -> np.ndarray:
        return self.contexts.where.token[position].astype(np.int64) * self._width + self.contexts.codes(1)[position]

    @property
    def _width(self) -> int:
        return len(self.contexts.vocabulary) + 1


def build(spec: ExplainSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    latents = read_coder_width(inputs["activations"])
    grouped = read(inputs["activations"]).by_latent(latents)
    where = positions(read_windows(inputs["tokens"], "explain"))
    vocabulary = Vocabulary(tuple(token_texts(inputs["subject"].root())))
    groups = np.unique(where.group)
    draws = generator(spec.seed, "explain", "held-out")
    held = draws.permutation(groups)[: int(HELD_OUT_SHARE * len(groups))]
    # the reader's own window only ever cuts farther back than a rule may look
    contexts = Contexts(where, vocabulary, window=spec.reach + 1)
    evidence = Evidence(contexts, spec.reach, np.isin(where.group, held))
    rows: list[dict[str, object]] = []
    with running.progress.stage("explain", latents) as advance:
        for latent in range(latents):
            rows.append({"latent": latent, **_explain(grouped, latent, evidence, spec)})
            advance(1)
    types = {"latent": np.int32, "quotes": np.int32, "words": np.int32, "scale": np.float32}
    columns = {name: np.array([row[name] for row in rows], dtype=types.get(name)) for name in rows[0]}
    write_table(columns, out / "explanations.parquet")


def _explain(grouped: ByLatent, latent: int, evidence: Evidence, spec: ExplainSpec) -> dict[str, object]:
    position, value = grouped.of(latent)
    if len(position) < spec.min_active:
        why = f"active on {len(position)} tokens, fewer than {spec.min_active}"
        return {"sentence": "", "quotes": 0, "words": 0, "scale": 0.0, "energy_explained": 0.0, "why_none": why}
    learned = learn(position, value, evidence, spec)
    sentence = write(learned.rule)
    if not learned.rule.strengths:
        why = "no token predicts it on held-out documents"
        return {"sentence": "", "quotes": 0, "words": 0, "scale": 0.0, "energy_explained": 0.0, "why_none": why}
    return {
        "sentence": sentence,
        "quotes": learned.rule.quotes,
        "words": words(sentence),
        "scale": learned.scale,
        "energy_explained": learned.energy_explained,
        "why_none": "",
    }


def learn(position: np.ndarray, value: np.ndarray, evidence: Evidence, spec: ExplainSpec) -> Learned:
    """The rule for a latent that is active with `value` at `position` and nowhere else."""
    scale = float(np.quantile(value, STRONG))
    search = _Search(position, value * (STRONGEST / scale), evidence)
    parts: list[_Part] = []
    refused = 0
    while refused < PATIENCE:
        part = search.best(quotes_left=spec.max_quotes - sum(part.quotes for part in parts))
        if part is None:
            break
        if search.helps_held_out(part):
            search.add(part)
            parts.append(part)
        else:
            refused += 1
        search.tried.add(part.key)
    search.settle(parts)
    rule = _rule(parts)
    while parts and (words(write(rule)) > spec.max_words or rule.quotes > spec.max_quotes):
        parts.pop()
        rule = _rule(parts)
    return Learned(rule, scale, search.energy_explained(parts, float(np.square(value * (STRONGEST / scale)).sum())))


@dataclass(frozen=True)
class _Part:
    """Something a rule may say: fires on a token (place None), or a change."""

    place: Place | None
    item: Item
    amount: int

    @property
    def key(self) -> tuple[Place | None, Item]:
        return self.place, self.item

    @property
    def quotes(self) -> int:
        return int(isinstance(self.item, bytes))


def _rule(parts: list[_Part]) -> Rule:
    strengths = [(part.item, part.amount) for part in parts if part.place is None and isinstance(part.item, bytes)]
    changes = [Change(part.place, part.item, part.amount) for part in parts if part.place is not None and part.amount]
    return Rule(tuple(strengths), tuple(changes) if strengths else ()).normal()


class _Search:
    """The contexts of a latent's candidate tokens, with the level that the parts so far give each of them."""

    def __init__(self, position: np.ndarray, target: np.ndarray, evidence: Evidence) -> None:
        self._evidence = evidence
        contexts = evidence.contexts
        self.tokens = _candidates(position, target, evidence)
        rows = [contexts.at(token) for token in self.tokens]
        self.position = np.concatenate(rows)
        self.token = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        dense = np.zeros(len(contexts.where), dtype=np.float32)
        dense[position] = target
        self.target = dense[self.position]
        self.held = evidence.held_P[self.position]
        self.changed = np.zeros(len(self.position), dtype=np.int64)
        self.level = np.zeros(len(self.position), dtype=np.int64)  # before it is cut to 0..9
        self.named = np.zeros(len(self.tokens), dtype=bool)
        self.tried: set[tuple[Place | None, Item]] = set()
        self._seen_at = {key: _seen_at(contexts, self.position, *key) for key in evidence.places}
        self._fitted_at: dict[tuple[Place, bool], _SeenAt] = {}
        self._fitted = np.zeros(0, dtype=np.int64)
        self._token_gains: np.ndarray | None = None

    # -- choosing -----------------------------------------------------------------------------------------------------

    def best(self, quotes_left: int) -> "_Part | None":
        """The part that lowers the penalised squared error on the fitted documents most."""
        found: tuple[float, _Part] | None = None
        candidates = [*(self._tokens_gains() if quotes_left else []), *self._change_gains(quotes_left)]
        for gain, part in candidates:
            if gain > 0 and (found is None or gain > found[0]):
                found = gain, part
        return found[1] if found else None

    def _tokens_gains(self) -> "list[tuple[float, _Part]]":
        if self._token_gains is None:
            self._token_gains = self._gain_of_each_amount()
        texts = self._evidence.contexts.vocabulary.texts
        out = []
        for index in np.flatnonzero(~self.named):
            item = texts[self.tokens[index]]
            if (None, item) not in self.tried:
                amount = int(self._token_gains[index].argmax())
                out.append((float(self._token_gains[index, amount]), _Part(None, item, amount)))
        return out

    def _gain_of_each_amount(self) -> np.ndarray:
        """[tokens, 10]: what naming a token with each strength would gain, given the changes so far."""
        rows = np.flatnonzero(~self.held & ~self.named[self.token])
        width = 2 * STRONGEST + 1
        cell = self.token[rows] * width + np.clip(self.changed[rows], -STRONGEST, STRONGEST) + STRONGEST
        shape = (len(self.tokens), width)
        seen = np.bincount(cell, minlength=shape[0] * width).reshape(shape)
        sums = np.bincount(cell, self.target[rows], minlength=shape[0] * width).reshape(shape)
        amounts = np.arange(STRONGEST + 1)
        level = np.clip(amounts[:, None] + np.arange(-STRONGEST, STRONGEST + 1), 0, STRONGEST)
        return 2 * sums @ level.T - seen @ np.square(level).T - RIDGE * np.square(amounts)

    def _change_gains(self, quotes_left: int) -> "list[tuple[float, _Part]]":
        if not len(self._fitted):
            return []
        residual = np.zeros(len(self.position))
        level = self.level[self._fitted]
        residual[self._fitted] = self.target[self._fitted] - np.minimum(np.maximum(level, 0), STRONGEST)
        keys: list[tuple[Place, Item]] = []
        rows: list[np.ndarray] = []
        for (place, by_kind), seen_at in self._fitted_at.items():
            if not (by_kind or quotes_left):
                continue
            counts = seen_at.counts
            screen = np.square(seen_at.sums(residual)) / (counts + RIDGE)
            screen[counts < LEAST_SEEN] = 0
            if not by_kind:
                screen[0] = 0  # nothing before: said by kind
            promising = np.flatnonzero(screen)
            for code in promising[np.argsort(-screen[promising], kind="stable")[:SCREENED]]:
                item = self._item(int(code), by_kind)
                if (place, item) not in self.tried:
                    keys.append((place, item))
                    rows.append(seen_at.rows_of(int(code)))
        return self._best_amounts(keys, rows) if keys else []

    def _best_amounts(self, keys: list[tuple[Place, Item]], rows: list[np.ndarray]) -> "list[tuple[float, _Part]]":
        """For each candidate change, standing at its rows: its best amount and what that gains."""
        width = HIGHEST - LOWEST + 1
        every = np.concatenate(rows)
        of_candidate = np.repeat(np.arange(len(rows)) * width, [len(part) for part in rows])
        cell = of_candidate + np.minimum(np.maximum(self.level[every], LOWEST), HIGHEST) - LOWEST
        size = len(rows) * width
        seen = np.bincount(cell, minlength=size).reshape(-1, width)
        sums = np.bincount(cell, self.target[every], minlength=size).reshape(-1, width)
        fits = 2 * sums @ _LEVELS_AFTER.T - seen @ _SQUARES_AFTER.T
        gains = fits - fits[:, STRONGEST, None] - RIDGE * np.square(_AMOUNTS)
        gains[:, STRONGEST] = 0.0
        best = gains.argmax(1)
        return [
            (float(gains[index, amount]), _Part(*key, int(_AMOUNTS[amount])))
            for index, (key, amount) in enumerate(zip(keys, best, strict=True))
        ]

    # -- changing -----------------------------------------------------------------------------------------------------

    def helps_held_out(self, part: _Part) -> bool:
        rows = np.flatnonzero(self.held & self._speaks_of(part))
        if part.place is not None:
            rows = rows[self.named[self.token[rows]]]
        before = np.where(self.named[self.token[rows]], np.clip(self.level[rows], 0, STRONGEST), 0)
        after = np.clip(self.level[rows] + part.amount, 0, STRONGEST)
        target = self.target[rows]
        return bool(np.square(target - after).sum() <= np.square(target - before).sum())

    def add(self, part: _Part) -> None:
        rows = self._speaks_of(part)
        self.level[rows] += part.amount
        if part.place is None:
            self.named[self.token[np.flatnonzero(rows)[0]]] = True
            speaking = ~self.held & self.named[self.token]
            self._fitted = np.flatnonzero(speaking)
            self._fitted_at = {key: seen_at.among(speaking) for key, seen_at in self._seen_at.items()}
        else:
            self.changed[rows] += part.amount
            self._token_gains = None

    def settle(self, parts: list[_Part]) -> None:
        """Choose every amount once more, given all the others, on all documents."""
        for index, part in enumerate(parts):
            spoken = self._speaks_of(part)
            rows = np.flatnonzero(spoken & self.named[self.token])
            self.level[spoken] -= part.amount
            lowest = 0 if part.place is None else -STRONGEST
            amounts = np.arange(lowest, STRONGEST + 1)
            level = np.clip(self.level[rows] + amounts[:, None], 0, STRONGEST)
            errors = np.square(self.target[rows] - level).sum(1) + RIDGE * np.square(amounts)
            best = int(amounts[errors.argmin()])
            self.level[spoken] += best
            parts[index] = _Part(part.place, part.item, best)

    def energy_explained(self, parts: list[_Part], energy: float) -> float:
        level = np.where(self.named[self.token], np.clip(self.level, 0, STRONGEST), 0)
        missed = energy - float(np.square(self.target).sum())
        return 1 - (float(np.square(self.target - level).sum()) + missed) / energy if parts else 0.0

    def _speaks_of(self, part: _Part) -> np.ndarray:
        """A mask of the contexts in which a part has a say."""
        if part.place is None:
            assert isinstance(part.item, bytes)
            wanted = self._evidence.contexts.vocabulary.ids[part.item]
            return np.isin(self.tokens, wanted)[self.token]
        by_kind = isinstance(part.item, int)
        code = part.item if isinstance(part.item, int) else self._evidence.contexts.vocabulary.ids[part.item][0] + 1
        found = np.zeros(len(self.position), dtype=bool)
        found[self._seen_at[part.place, by_kind].rows_of(code)] = True
        return found

    def _item(self, code: int, by_kind: bool) -> Item:
        return code if by_kind else self._evidence.contexts.vocabulary.texts[code - 1]


_AMOUNTS = np.arange(-STRONGEST, STRONGEST + 1)
_LEVELS_AFTER = np.clip(_AMOUNTS[:, None] + np.arange(LOWEST, HIGHEST + 1), 0, STRONGEST)
_SQUARES_AFTER = np.square(_LEVELS_AFTER)


@dataclass(frozen=True)
class _SeenAt:
    """What stands at one place before each context, ordered by code, and by row within a code."""

    codes: np.ndarray
    rows: np.ndarray
    size: int

    @cached_property
    def counts(self) -> np.ndarray:
        return np.bincount(self.codes, minlength=self.size)

    @cached_property
    def _bounds(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.counts)])

    def sums(self, of_rows: np.ndarray) -> np.ndarray:
        return np.bincount(self.codes, of_rows[self.rows], minlength=self.size)

    def rows_of(self, code: int) -> np.ndarray:
        return self.rows[self._bounds[code] : self._bounds[code + 1]]

    def among(self, chosen: np.ndarray) -> "_SeenAt":
        """The same for the rows of a mask."""
        kept = chosen[self.rows]
        return _SeenAt(self.codes[kept], self.rows[kept], self.size)


def _seen_at(contexts: Contexts, position: np.ndarray, place: Place, by_kind: bool) -> _SeenAt:
    codes = np.stack([contexts.codes(distance)[position] for distance in distances(place)], axis=1)
    codes = contexts.kinds_by_code[codes] if by_kind else codes
    if codes.shape[1] > 1:
        codes = _once(codes)
    flat = codes.ravel()
    order = np.argsort(flat.astype(np.int16) if flat.max(initial=0) < 1 << 15 else flat, kind="stable")
    order = order[np.count_nonzero(flat < 0) :]
    size = len(KINDS) if by_kind else len(contexts.vocabulary) + 1
    return _SeenAt(flat[order], order // codes.shape[1], size)


def _candidates(position: np.ndarray, target: np.ndarray, evidence: Evidence) -> np.ndarray:
    """The tokens whose contexts, told apart by the token before, account for most of the latent's energy."""
    pair, inverse = np.unique(evidence.pair(position), return_inverse=True)
    sums = np.bincount(inverse, target)
    explained = np.square(sums) / (evidence.pairs_seen[pair] + RIDGE)
    token, of_pair = np.unique(pair // (len(evidence.contexts.vocabulary) + 1), return_inverse=True)
    energy = np.bincount(of_pair, explained)
    return token[np.argsort(-energy, kind="stable")[:CANDIDATE_TOKENS]]


def _once(codes: np.ndarray) -> np.ndarray:
    """Each row's codes, with repetitions and what is nothing made -1."""
    codes = np.sort(codes, axis=1)
    again = np.zeros_like(codes, dtype=bool)
    again[:, 1:] = codes[:, 1:] == codes[:, :-1]
    return np.where(again | (codes == 0), -1, codes)
