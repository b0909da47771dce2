"""Texts of random tokens, and latents that fire on them by a rule we know."""

import numpy as np

from nlrewrite.explain.evidence import Evidence
from nlrewrite.language.reading import Contexts
from nlrewrite.language.vocabulary import END_OF_TEXT, Vocabulary
from nlrewrite.seeds import generator
from nlrewrite.text.positions import Positions

WORDS = (END_OF_TEXT, b"\n", *(f" w{number}".encode() for number in range(12)), b"7", b".", b"Capital", b"part")
A, B, C = WORDS.index(b" w0"), WORDS.index(b" w1"), WORDS.index(b" w2")


def text(windows: int = 240, length: int = 40, seed: int = 0) -> Positions:
    tokens = generator(seed, "planted text").integers(1, len(WORDS), (windows, length)).astype(np.int32)
    tokens[:, 0] = 0
    window, offset = np.divmod(np.arange(tokens.size, dtype=np.int32), np.int32(length))
    return Positions(window, offset, tokens.ravel(), window // 3)


def evidence(where: Positions, reach: int = 8, words: tuple[bytes, ...] = WORDS) -> Evidence:
    held = np.isin(where.group, np.unique(where.group)[::3])
    return Evidence(Contexts(where, Vocabulary(words), window=reach + 1), reach, held)


def latent(level_P: np.ndarray, scale: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Positions and values of a latent whose activation is its level in ninths of `scale`."""
    position = np.flatnonzero(level_P)
    return position, (level_P[position] * scale / 9).astype(np.float32)
