"""Asking an engine about pairs of a latent's sentence and a context: the fewest prefixes, nothing asked twice.

In: an engine, a compiled prompt, sentences, contexts as they are shown, and for each latent the contexts to ask about.
Out: `Asked`, log-probabilities of the labels for every pair. Invariants: pairs that share a prefix go to the engine in
one block; a pair without an answer has NaN and a typed outcome; what a killed run had finished is not asked again, and
gives the same bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrewrite.llm.engine import Engine, Outcome, PrefixBlock, Scores
from nlrewrite.llm.purse import check_asked
from nlrewrite.questions import Order

if TYPE_CHECKING:
    from nlrewrite.artifacts import Work
    from nlrewrite.language.prompts import Prompts
    from nlrewrite.progress import Advance, Progress

NOTHING = -1
PIECE = 10_000
"""Questions after which what was answered is kept."""


@dataclass(frozen=True)
class Asked:
    """Answers about L latents, S columns each, K labels."""

    logp: np.ndarray
    """float16 [L, S, K]; NaN where there is no answer, -inf for a label that was not told."""
    logmass: np.ndarray | None
    """float16 [L, S]."""
    outcome: np.ndarray
    """int8 [L, S] of `Outcome`."""
    top: np.ndarray | None = None
    """bool [L, S, K]."""
    missing: np.ndarray | None = None
    """float16 [L, S]: most probability that labels may have which were not told."""


def ask(
    engine: Engine,
    prompts: "Prompts",
    sentences: Sequence[str],
    shown: Sequence[str],
    context_LS: np.ndarray,
    order: Order,
    progress: "Progress",
    work: "Work | None" = None,
    told: Sequence[float] | None = None,
    *,
    screened: bool = False,
) -> Asked:
    """`context_LS` [L or 1, S] are indices into `shown`, NOTHING where a latent has no question in a column.

    Latents with an empty sentence are not asked about. `told` is a score for each latent, where the prompt has one.
    `screened`: the engine may leave questions out; of any other one that does it has hit a limit, which is an error.
    """
    latents, columns, labels = len(sentences), context_LS.shape[1], len(prompts.labels)
    pair = _pairs(sentences, context_LS)
    by = pair.context if order == "context" else pair.latent
    pair = pair.at(np.argsort(by, kind="stable"))
    by = pair.context if order == "context" else pair.latent
    kept = _Kept(latents, columns, labels)
    texts = _Texts(prompts, sentences, shown, order, told)
    with progress.stage(f"ask {engine.name}", len(by)) as advance:
        for start, end in _pieces(by):
            name = f"asked-{start:010d}-{end}"
            stored = work.read(name) if work is not None else None
            piece, rows = pair.at(np.arange(start, end)), np.arange(start, end)
            if stored is None:
                texts.check(int(pair.latent[start]), int(pair.context[start]))
            else:
                part = _unpacked(stored)
                kept.add(piece, part)
                left = Outcome.TRANSPORT if screened else (Outcome.TRANSPORT, Outcome.SKIPPED)
                rows = rows[np.isin(part.outcome, left)]  # who goes on may reach or afford what could not be then
            if len(rows):
                kept.add(pair.at(rows), _answered(engine, texts, pair.at(rows), by[rows], advance))
                if work is not None:
                    work.write(name, _packed(kept.of(piece)))
            if not screened:
                check_asked(kept.of(piece).outcome)
            if len(rows) < end - start:
                advance(end - start - len(rows), "kept from before")
    return kept.asked()


@dataclass(frozen=True)
class _Pairs:
    """Questions, one a row."""

    latent: np.ndarray
    column: np.ndarray
    context: np.ndarray

    def at(self, rows: np.ndarray) -> "_Pairs":
        return _Pairs(self.latent[rows], self.column[rows], self.context[rows])


def _pairs(sentences: Sequence[str], context_LS: np.ndarray) -> _Pairs:
    explained = np.array([bool(sentence) for sentence in sentences])
    context = np.broadcast_to(context_LS, (len(sentences), context_LS.shape[1]))
    latent, column = np.nonzero((context != NOTHING) & explained[:, None])
    return _Pairs(latent, column, context[latent, column])


def _pieces(by: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of whole prefixes with at least PIECE questions each, but for the last one."""
    ends = np.append(np.flatnonzero(np.diff(by)) + 1, len(by)) if len(by) else []
    start = 0
    for end in ends:
        if end - start >= PIECE or end == len(by):
            yield start, int(end)
            start = int(end)


class _Texts:
    """Token ids of prefixes and suffixes, each rendered once."""

    def __init__(
        self,
        prompts: "Prompts",
        sentences: Sequence[str],
        shown: Sequence[str],
        order: Order,
        told: Sequence[float] | None,
    ) -> None:
        self.prompts, self._sentences, self._shown, self._order, self._told = prompts, sentences, shown, order, told
        self._suffixes: dict[int, np.ndarray] = {}

    def prefix(self, which: int) -> np.ndarray:
        given = self._context(which) if self._order == "context" else self._sentence(which)
        return self.prompts.prefix(**given)

    def suffix(self, which: int) -> np.ndarray:
        if which not in self._suffixes:
            given = self._sentence(which) if self._order == "context" else self._context(which)
            self._suffixes[which] = self.prompts.suffix(**given)
        return self._suffixes[which]

    def check(self, latent: int, context: int) -> None:
        """That a pair's prefix and suffix are together the ids of the whole prompt."""
        said, shown = self._sentence(latent), self._context(context)
        self.prompts.split_checked(*((shown, said) if self._order == "context" else (said, shown)))

    def of(self, pair: _Pairs) -> np.ndarray:
        """Which suffix each pair has."""
        return pair.latent if self._order == "context" else pair.context

    def _sentence(self, latent: int) -> dict[str, Any]:
        score = {} if self._told is None else {"score": self._told[latent]}
        return {"explanation": self._sentences[latent], **score}

    def _context(self, context: int) -> dict[str, str]:
        return {"context": self._shown[context]}


def _answered(engine: Engine, texts: _Texts, pair: _Pairs, by: np.ndarray, advance: "Advance") -> Scores:
    """The answers to some questions, a block for each prefix, which `by` says; progress is told block by block."""
    found: list[Scores] = []
    bounds = np.append(np.flatnonzero(np.diff(by, prepend=by[0] - 1)), len(by))
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        suffixes = [texts.suffix(which) for which in texts.of(pair)[first:last].tolist()]
        block = PrefixBlock.of(texts.prefix(int(by[first])), suffixes, texts.prompts.labels)
        scores = engine.digits(block)
        assert len(scores.logp) == last - first, (
            f"{engine.name} answered {len(scores.logp)} of {last - first} questions"
        )
        found.append(scores)
        advance(last - first)
    return _joined(found)


def _joined(parts: list[Scores]) -> Scores:
    """One after the other. A block without any answer may leave out what the others tell of theirs."""

    def one(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        known = [value for value in values if value is not None]
        if not known:
            return None
        empty = {"logmass": np.nan, "missing": 0.0, "top": False}
        for index, part in enumerate(parts):
            if values[index] is None:
                unanswered = np.isnan(part.logp).all()
                assert name == "missing" or unanswered, f"{name} was told for some blocks alone"
                values[index] = np.full((len(part.logp), *known[0].shape[1:]), empty[name], dtype=known[0].dtype)
        return np.concatenate(values)

    return Scores(one("logp"), one("logmass"), one("outcome"), one("missing"), one("top"))


class _Kept:
    """All answers, as they come in."""

    def __init__(self, latents: int, columns: int, labels: int) -> None:
        self._logp = np.full((latents, columns, labels), np.nan, dtype=np.float16)
        self._outcome = np.full((latents, columns), Outcome.SKIPPED, dtype=np.int8)
        self._more: dict[str, np.ndarray] = {}

    def add(self, pair: _Pairs, part: Scores) -> None:
        latent, column = pair.latent, pair.column
        self._logp[latent, column] = part.logp
        self._outcome[latent, column] = part.outcome
        empty = {
            "logmass": np.full(self._outcome.shape, np.nan, dtype=np.float16),
            "missing": np.zeros(self._outcome.shape, dtype=np.float16),
            "top": np.zeros(self._logp.shape, dtype=bool),
        }
        for name, values in empty.items():
            if getattr(part, name) is not None:
                self._more.setdefault(name, values)[latent, column] = getattr(part, name)

    def of(self, pair: _Pairs) -> Scores:
        """What is known of some questions."""
        latent, column = pair.latent, pair.column
        more = {name: values[latent, column] for name, values in self._more.items()}
        return Scores(self._logp[latent, column], outcome=self._outcome[latent, column], **{"logmass": None, **more})

    def asked(self) -> Asked:
        return Asked(self._logp, outcome=self._outcome, **{"logmass": None, **self._more})


def _packed(part: Scores) -> bytes:
    from safetensors.numpy import save

    fields = {name: getattr(part, name) for name in ("logp", "logmass", "outcome", "missing", "top")}
    arrays = {name: np.ascontiguousarray(value) for name, value in fields.items() if value is not None}
    return save(
        {name: value.astype(np.float16) if value.dtype.kind == "f" else value for name, value in arrays.items()}
    )


def _unpacked(data: bytes) -> Scores:
    from safetensors.numpy import load

    arrays = load(data)
    more = {name: arrays.get(name) for name in ("logmass", "missing", "top")}
    return Scores(arrays["logp"], outcome=arrays["outcome"], **{"logmass": None, **more})
