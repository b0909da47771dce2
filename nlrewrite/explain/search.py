"""The greedy search for what to say of one latent: candidates, what each gains, and amounts in the light of others.

In: a latent's activations in ninths of a strong one, and the evidence. Out: parts of a rule, one or two at a time.
Invariant: `level` is at every moment what the parts added so far give each context; parts are chosen, and their amounts
set, on the fitted documents, and judged on the others.

All candidates are compared in a few counts over the cells (candidate, present level), so a round costs the same for one
candidate and for hundreds. A token that a latent fires on only in some contexts may gain nothing by itself: it is also
tried together with the change that picks out those contexts.
"""

from dataclasses import dataclass

import numpy as np

from nlrewrite.explain.evidence import Evidence, SeenAt, seen_at
from nlrewrite.language.sentence import STRONGEST, Item, Place

CANDIDATE_TOKENS = 16
CANDIDATE_PAIRS = 12
SCREENED = 5
RIDGE = 2.0  # a part of size d must earn more than RIDGE * d^2
LEAST_SEEN = 4
SETTLED_AT_MOST = 4
LOWEST, HIGHEST = -STRONGEST, 2 * STRONGEST  # levels beyond these act like these

_AMOUNTS = np.arange(-STRONGEST, STRONGEST + 1)
_LEVELS_AFTER = np.clip(_AMOUNTS[:, None] + np.arange(LOWEST, HIGHEST + 1), 0, STRONGEST)
_SQUARES_AFTER = np.square(_LEVELS_AFTER)
_COSTS = RIDGE * np.square(_AMOUNTS)


@dataclass(frozen=True)
class Part:
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


Parts = tuple[Part, ...]


class Search:
    """The contexts of a latent's candidate tokens, with the level that the parts so far give each of them."""

    def __init__(self, position: np.ndarray, target: np.ndarray, evidence: Evidence) -> None:
        self._evidence = evidence
        contexts = evidence.contexts
        self.tokens = _candidates(position, target, evidence)
        rows = [contexts.at(token) for token in self.tokens]
        self._bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        self._texts = [contexts.vocabulary.texts[token] for token in self.tokens]
        self._index: dict[Item, int] = {text: index for index, text in enumerate(self._texts)}
        self.position = np.concatenate(rows)
        self.token = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        dense = np.zeros(len(contexts.where), dtype=np.float32)
        dense[position] = target
        self.target = dense[self.position]
        self.held = evidence.held_P[self.position]
        self._judging = np.flatnonzero(self.held)
        self.changed = np.zeros(len(self.position), dtype=np.int64)
        self.level = np.zeros(len(self.position), dtype=np.int64)  # before it is cut to 0..9
        self.named = np.zeros(len(self.tokens), dtype=bool)
        self._tried: set[frozenset[tuple[Place | None, Item]]] = set()
        self._seen_at = {key: seen_at(contexts, self.position, *key) for key in evidence.places}
        self._fitted_at: dict[tuple[Place, bool], SeenAt] | None = None
        self._token_gains: np.ndarray | None = None
        self._pairs = self._promising_pairs()

    # -- choosing -----------------------------------------------------------------------------------------------------

    def best(self, quotes_left: int) -> Parts:
        """What lowers the penalised squared error on the fitted documents most; () if nothing does."""
        best_gain, best = 0.0, ()
        candidates = [*(self._tokens_gains() if quotes_left else []), *self._change_gains(quotes_left)]
        for gain, parts in [*candidates, *self._pair_gains(quotes_left)]:
            if gain > best_gain:
                best_gain, best = gain, parts
        return best

    def refuse(self, parts: Parts) -> None:
        """Never propose these parts again."""
        self._tried.add(frozenset(part.key for part in parts))

    def _untried(self, *keys: tuple[Place | None, Item]) -> bool:
        return frozenset(keys) not in self._tried

    def _tokens_gains(self) -> list[tuple[float, Parts]]:
        gains_TA = self._gain_of_each_strength()
        out: list[tuple[float, Parts]] = []
        for index in np.flatnonzero(~self.named):
            if self._untried((None, self._texts[index])):
                amount = int(gains_TA[index].argmax())
                out.append((float(gains_TA[index, amount]), (Part(None, self._texts[index], amount),)))
        return out

    def _gain_of_each_strength(self) -> np.ndarray:
        """[tokens, 10]: what naming a token would gain, given the changes so far."""
        if self._token_gains is None:
            rows = np.flatnonzero(~self.held & ~self.named[self.token])
            width = 2 * STRONGEST + 1
            cell = self.token[rows] * width + np.clip(self.changed[rows], -STRONGEST, STRONGEST) + STRONGEST
            shape = (len(self.tokens), width)
            seen = np.bincount(cell, minlength=shape[0] * width).reshape(shape)
            sums = np.bincount(cell, self.target[rows], minlength=shape[0] * width).reshape(shape)
            amounts = np.arange(STRONGEST + 1)
            level = np.clip(amounts[:, None] + np.arange(-STRONGEST, STRONGEST + 1), 0, STRONGEST)
            self._token_gains = 2 * sums @ level.T - seen @ np.square(level).T - RIDGE * np.square(amounts)
        return self._token_gains

    def _change_gains(self, quotes_left: int) -> list[tuple[float, Parts]]:
        if not self.named.any():
            return []
        if self._fitted_at is None:
            speaking = ~self.held & self.named[self.token]
            self._fitted_at = {key: seen.among(speaking) for key, seen in self._seen_at.items()}
        residual = self.target - np.minimum(np.maximum(self.level, 0), STRONGEST)
        keys: list[tuple[Place, Item]] = []
        rows: list[np.ndarray] = []
        for (place, by_kind), seen in self._fitted_at.items():
            if not (by_kind or quotes_left):
                continue
            screen = np.square(seen.sums(residual)) / (seen.counts + RIDGE)
            screen[seen.counts < LEAST_SEEN] = 0
            if not by_kind:
                screen[0] = 0  # nothing before: said by kind
            promising = np.flatnonzero(screen)
            for code in promising[np.argsort(-screen[promising], kind="stable")[:SCREENED]]:
                item = self._evidence.item(int(code), by_kind)
                if self._untried((place, item)):
                    keys.append((place, item))
                    rows.append(seen.rows_of(int(code)))
        return [(gain, (Part(*key, amount),)) for key, (gain, amount) in zip(keys, self._amounts(rows), strict=True)]

    def _amounts(self, rows: list[np.ndarray]) -> list[tuple[float, int]]:
        """For each candidate change, which stands at its rows: what its best amount gains, and that amount."""
        if not rows:
            return []
        width = HIGHEST - LOWEST + 1
        every = np.concatenate(rows)
        of_candidate = np.repeat(np.arange(len(rows)) * width, [len(part) for part in rows])
        cell = of_candidate + np.minimum(np.maximum(self.level[every], LOWEST), HIGHEST) - LOWEST
        size = len(rows) * width
        seen = np.bincount(cell, minlength=size).reshape(-1, width)
        sums = np.bincount(cell, self.target[every], minlength=size).reshape(-1, width)
        fits = 2 * sums @ _LEVELS_AFTER.T - seen @ _SQUARES_AFTER.T
        gains = fits - fits[:, STRONGEST, None] - _COSTS
        gains[:, STRONGEST] = 0.0
        best = gains.argmax(1)
        return [(float(gains[index, amount]), int(_AMOUNTS[amount])) for index, amount in enumerate(best)]

    def _promising_pairs(self) -> list[tuple[int, Place, bool, int]]:
        """Tokens with what picks out the contexts in which they count: token, place, whether by kind, code."""
        found: list[tuple[float, int, int, int]] = []
        for number, seen in enumerate(self._seen_at.values()):
            fitted = np.flatnonzero(~self.held[seen.rows])
            if not len(fitted):
                continue
            rows = seen.rows[fitted]
            key = seen.codes[fitted].astype(np.int64) * len(self.tokens) + self.token[rows]
            first = np.concatenate([[0], np.flatnonzero(np.diff(key)) + 1])
            counts = np.diff(first, append=len(key))
            sums = np.add.reduceat(self.target[rows].astype(np.float64), first)
            amount = np.clip(np.round(sums / (counts + RIDGE)), 0, STRONGEST)
            gains = 2 * amount * sums - np.square(amount) * (counts + RIDGE)
            gains[counts < LEAST_SEEN] = 0
            gaining = np.flatnonzero(gains > 0)
            for pair in gaining[np.argsort(-gains[gaining], kind="stable")[:CANDIDATE_PAIRS]]:
                code, token = divmod(int(key[first[pair]]), len(self.tokens))
                found.append((-float(gains[pair]), number, code, token))
        places = list(self._seen_at)
        return [
            (token, *places[number], code)
            for _, number, code, token in sorted(found)[:CANDIDATE_PAIRS]
            if code or places[number][1]
        ]

    def _pair_gains(self, quotes_left: int) -> list[tuple[float, Parts]]:
        """What a token with strength 0 and a change together would gain."""
        found: list[tuple[int, Place, Item]] = []
        rows: list[np.ndarray] = []
        for token, place, by_kind, code in self._pairs:
            item = self._evidence.item(code, by_kind)
            keys = (None, self._texts[token]), (place, item)
            quotes = 1 if by_kind else 2
            if self.named[token] or quotes > quotes_left or not (self._untried(*keys) and self._untried(keys[1])):
                continue
            standing = self._seen_at[place, by_kind].rows_of(code)
            of_token = self.token[standing]
            found.append((token, place, item))
            rows.append(standing[~self.held[standing] & (self.named[of_token] | (of_token == token))])
        out: list[tuple[float, Parts]] = []
        for (token, place, item), (gain, amount) in zip(found, self._amounts(rows), strict=True):
            gain += float(self._gain_of_each_strength()[token, 0])
            parts = Part(None, self._texts[token], 0), Part(place, item, amount)
            if amount > 0:
                out.append((gain, parts))
        return out

    # -- changing -----------------------------------------------------------------------------------------------------

    def helps_held_out(self, parts: Parts) -> bool:
        named, level = self.named.copy(), self.level.copy()
        for part in parts:
            level[self._rows_of(part)] += part.amount
            if part.place is None:
                named[self._index[part.item]] = True
        return self._error(level, named) <= self._error(self.level, self.named)

    def _error(self, level: np.ndarray, named: np.ndarray) -> float:
        said = np.minimum(np.maximum(level[self._judging], 0), STRONGEST) * named[self.token[self._judging]]
        return float(np.square(self.target[self._judging] - said).sum())

    def add(self, part: Part) -> None:
        rows = self._rows_of(part)
        self.level[rows] += part.amount
        if part.place is None:
            self.named[self._index[part.item]] = True
            self._fitted_at = None
        else:
            self.changed[rows] += part.amount
            self._token_gains = None

    def silences(self, part: Part) -> bool:
        """Whether a change takes all it can, and nothing else outweighs it in any context."""
        rows = self._rows_of(part)
        return part.amount == -STRONGEST and not (self.level[rows[self.named[self.token[rows]]]] > 0).any()

    def remove(self, part: Part) -> None:
        rows = self._rows_of(part)
        self.level[rows] -= part.amount
        if part.place is None:
            self.named[self._index[part.item]] = False
            self._fitted_at = None
        else:
            self.changed[rows] -= part.amount
            self._token_gains = None

    def settle(self, parts: list[Part], everywhere: bool = False) -> list[Part]:
        """Choose every amount anew, given the others, on the fitted documents or on all; changes of nothing go."""
        judged = self.named[self.token] if everywhere else self.named[self.token] & ~self.held
        settled = list(parts)
        rows = [self._rows_of(part) for part in settled]
        fitted = [some[judged[some]] for some in rows]
        unchanged = turn = 0
        while unchanged < len(settled) and turn < SETTLED_AT_MOST * len(settled):
            at = turn % len(settled)
            before = settled[at]
            settled[at] = self._settled(before, rows[at], fitted[at])
            unchanged = unchanged + 1 if settled[at] == before else 1
            turn += 1
        return [part for part in settled if part.place is None or part.amount]

    def _settled(self, part: Part, rows: np.ndarray, fitted: np.ndarray) -> Part:
        cell = np.minimum(np.maximum(self.level[fitted] - part.amount, LOWEST), HIGHEST) - LOWEST
        seen = np.bincount(cell, minlength=HIGHEST - LOWEST + 1)
        sums = np.bincount(cell, self.target[fitted], minlength=HIGHEST - LOWEST + 1)
        gains = 2 * _LEVELS_AFTER @ sums - _SQUARES_AFTER @ seen - _COSTS
        first = STRONGEST if part.place is None else 0
        amount = first + int(gains[first:].argmax()) - STRONGEST
        if amount == part.amount:
            return part
        self.level[rows] += amount - part.amount
        if part.place is not None:
            self.changed[rows] += amount - part.amount
            self._token_gains = None
        return Part(part.place, part.item, amount)

    def energy_explained(self, energy: float) -> float:
        level = np.where(self.named[self.token], np.clip(self.level, 0, STRONGEST), 0)
        missed = energy - float(np.square(self.target).sum())
        return 1 - (float(np.square(self.target - level).sum()) + missed) / energy

    def _rows_of(self, part: Part) -> np.ndarray:
        """The contexts in which a part has a say."""
        if part.place is None:
            index = self._index[part.item]
            return np.arange(self._bounds[index], self._bounds[index + 1])
        return self._seen_at[part.place, isinstance(part.item, int)].rows_of(self._evidence.code(part.item))


def _candidates(position: np.ndarray, target: np.ndarray, evidence: Evidence) -> np.ndarray:
    """The tokens whose contexts, told apart by the token before, account for most of the latent's energy."""
    pair, inverse = np.unique(evidence.pair(position), return_inverse=True)
    sums = np.bincount(inverse, target)
    explained = np.square(sums) / (evidence.pairs_seen[pair] + RIDGE)
    token, of_pair = np.unique(pair // (len(evidence.contexts.vocabulary) + 1), return_inverse=True)
    energy = np.bincount(of_pair, explained)
    return token[np.argsort(-energy, kind="stable")[:CANDIDATE_TOKENS]]
