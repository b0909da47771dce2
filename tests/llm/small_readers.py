"""A subject's vocabulary, text in it, and readers made on the spot, as small as they go."""

import numpy as np

from nlrewrite.language.vocabulary import Vocabulary
from nlrewrite.llm.reader import taught
from nlrewrite.llm.training import Material
from nlrewrite.questions import TrainedReader
from nlrewrite.text.positions import Positions

TEXTS = [
    b"<|endoftext|>",
    *(b" the", b"the", b" of", b"of", b" in", b" cat", b" dog", b"Cat", b"\n", b"\n    ", b" ", b"7", b" 42"),
    *(b".", b",", b'"', b"\\", b"|", b"<<", b"ing", b"ed", b"\xe6\x9c", b"\xa8", b"()", b" or", b"or"),
]
VOCABULARY = Vocabulary(tuple(TEXTS))


def positions(windows: int = 60, length: int = 20, seed: int = 0) -> Positions:
    """Windows that begin with the end of text, and then some tokens far more often than others."""
    draws = np.random.default_rng(seed)
    share = 1 / np.arange(1, len(TEXTS))
    token = draws.choice(np.arange(1, len(TEXTS)), (windows, length), p=share / share.sum())
    token[:, 0] = 0
    return Positions(
        np.repeat(np.arange(windows, dtype=np.int32), length),
        np.tile(np.arange(length, dtype=np.int32), windows),
        token.astype(np.int32).ravel(),
        np.repeat(np.arange(windows, dtype=np.int32), length),
    )


SPEC = TrainedReader(layers=1, width=32, steps=12, batch=16, held_out=0.2)


def material(spec: TrainedReader = SPEC) -> tuple[object, Material]:
    return taught(spec, positions(), TEXTS)
