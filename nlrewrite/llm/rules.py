"""The rule reader as an engine: it reads sentences of the rule language where others run a language model.

In: token ids of the built-in template `reader`, in either order: the line that begins with a colon holds the sentence,
the other one the context as a row of quoted tokens, one of them marked. Out: what `language/reading.py` answers, as
log-probabilities of ten labels. Invariants: an answer depends on the two texts alone and is the rule reader's own; the
labels have all the probability; what is not in the rule language, or not of the template, is unparseable.
"""

import time
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.language.context import separated
from nlrewrite.language.reading import DIGITS, Contexts, distributions
from nlrewrite.language.sentence import Rule, Unparsed, parse
from nlrewrite.language.vocabulary import Vocabulary
from nlrewrite.llm.engine import Completion, Outcome, PrefixBlock, Sampling, Scores, Usage
from nlrewrite.text.positions import Positions

COLON = ":"
SAMPLE = '" a"<<"木\\xc3">>\n: Fires on " of" (7), "  é" (2). Silent right after "\\n".\n'
REMEMBERED = 1 << 16
"""Texts whose reading is kept."""
UNREAD = -1


class Rules:
    """Answers by rule. The tokens of `tokenizer` must give back the text that they were cut from."""

    name = "rules"
    exact_mass = True

    def __init__(self, tokenizer: Any) -> None:
        self.usage = Usage()
        self._backend, self._bos = tokenizer.backend_tokenizer, tokenizer.bos_token_id
        sample = self._backend.encode(SAMPLE, add_special_tokens=False).ids
        if self._text(tuple(sample)) != SAMPLE:
            raise SettingError(
                f"the rule reader reads text, and the tokens of this {type(tokenizer).__name__} do not give back the "
                f"text they were cut from. Use a byte-level tokenizer, such as that of a subject trained here"
            )
        with np.errstate(divide="ignore"):
            logp_ZD = np.log(distributions())
        self._logp_ZD = np.vstack([logp_ZD, np.full(DIGITS, np.nan)]).astype(np.float32)  # the last row: UNREAD
        self._suffix = lru_cache(REMEMBERED)(self._text)
        self._rule = lru_cache(REMEMBERED)(_rule)
        self._context = lru_cache(REMEMBERED // 16)(_context)

    def about(self) -> dict[str, object]:
        return {"engine": self.name, "template": "reader"}

    def digits(self, block: PrefixBlock) -> Scores:
        if len(block.labels) != DIGITS:
            raise SettingError(f"the rule reader answers in {DIGITS} digits, and is asked for {len(block.labels)}")
        began = time.perf_counter()
        prefix = self._text(tuple(block.prefix.tolist()))
        level_N = np.array([self._level(prefix, tuple(block.suffix(n).tolist())) for n in range(len(block))], np.int64)
        read_N = level_N != UNREAD
        outcome_N = np.where(read_N, Outcome.OK, Outcome.UNPARSEABLE).astype(np.int8)
        self._count(block, int((~read_N).sum()), time.perf_counter() - began)
        top_ND = np.repeat(read_N[:, None], DIGITS, axis=1)
        return Scores(self._logp_ZD[level_N], np.where(read_N, 0, np.nan).astype(np.float32), outcome_N, top=top_ND)

    def complete(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Completion]:
        self.usage.queries += len(prompts)
        refused = self.usage.failed.get(Outcome.REFUSED.name, 0)
        self.usage.failed[Outcome.REFUSED.name] = refused + len(prompts)
        return [Completion("", Outcome.REFUSED, why="the rule reader reads, and does not write") for _ in prompts]

    def close(self) -> None:
        for remembered in (self._suffix, self._rule, self._context):
            remembered.cache_clear()

    def _text(self, ids: tuple[int, ...]) -> str:
        begin = 1 if ids and ids[0] == self._bos else 0
        return self._backend.decode(ids[begin:], skip_special_tokens=False)

    def _level(self, prefix: str, suffix: tuple[int, ...]) -> int:
        lines = (prefix + self._suffix(suffix)).split("\n")
        if len(lines) != 3 or lines[2]:
            return UNREAD
        sentence, context = sorted(lines[:2], key=lambda line: not line.startswith(COLON))
        rule, seen = self._rule(sentence), self._context(context)
        return UNREAD if rule is None or seen is None else seen.level(rule)

    def _count(self, block: PrefixBlock, unread: int, seconds: float) -> None:
        usage = self.usage
        usage.queries += len(block)
        usage.prompt_tokens += len(block.prefix) + len(block.suffix_tokens)
        usage.cached_tokens += len(block.prefix) * max(0, len(block) - 1)
        usage.seconds += seconds
        if unread:
            usage.failed[Outcome.UNPARSEABLE.name] = usage.failed.get(Outcome.UNPARSEABLE.name, 0) + unread


class _Context:
    """Tokens up to the marked one."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = tokens

    @cached_property
    def _contexts(self) -> Contexts:
        ids = {text: index for index, text in enumerate(dict.fromkeys(self._tokens))}
        count = len(self._tokens)
        zero, token = np.zeros(count, np.int32), np.array([ids[text] for text in self._tokens], np.int32)
        where = Positions(zero, np.arange(count, dtype=np.int32), token, zero)
        return Contexts(where, Vocabulary(tuple(ids)), window=count)

    def level(self, rule: Rule) -> int:
        if not any(token == self._tokens[-1] for token, _ in rule.strengths):
            return 0
        position, level = self._contexts.levels(rule)
        return int(level[position == len(self._tokens) - 1].sum())


def _rule(line: str) -> Rule | None:
    try:
        return parse(line.removeprefix(COLON)) if line.startswith(COLON) else None
    except Unparsed:
        return None


def _context(line: str) -> _Context | None:
    try:
        tokens, at = separated(line)
    except ValueError:
        return None
    return _Context(tokens[: at[0] + 1]) if len(at) == 1 else None
