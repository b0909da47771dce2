"""A small engine whose answers follow from the token ids alone, so that a test can say what each must be."""

from collections.abc import Sequence

import numpy as np

from nlrewrite.llm.engine import Completion, Outcome, PrefixBlock, Sampling, Scores, Usage
from nlrewrite.seeds import generator


class Told:
    """Answers by a draw that (prefix, suffix) names; fails where the draw says so, or after `most` blocks."""

    name = "told"
    exact_mass = True

    def __init__(self, failing: float = 0.0, most: int | None = None) -> None:
        self.usage, self.failing, self.most = Usage(), failing, most
        self.blocks: list[PrefixBlock] = []

    def about(self) -> dict[str, object]:
        return {}

    def digits(self, block: PrefixBlock) -> Scores:
        if self.most is not None and len(self.blocks) >= self.most:
            raise OSError("killed here")
        self.blocks.append(block)
        rows = [self.answer(block.prefix, block.suffix(index), len(block.labels)) for index in range(len(block))]
        logp, mass, outcome = (np.array(column) for column in zip(*rows, strict=True))
        return Scores(logp.astype(np.float32), mass.astype(np.float32), outcome.astype(np.int8))

    def answer(self, prefix: np.ndarray, suffix: np.ndarray, labels: int) -> tuple[np.ndarray, float, int]:
        draws = generator(0, ",".join(map(str, prefix.tolist())), ",".join(map(str, suffix.tolist())))
        logits = draws.standard_normal(labels)
        mass = -float(draws.random())
        if draws.random() < self.failing:
            return np.full(labels, np.nan), np.nan, int(Outcome.UNPARSEABLE)
        return logits - np.log(np.exp(logits).sum()), mass, int(Outcome.OK)

    def complete(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Completion]:
        return [Completion("", Outcome.REFUSED, why="it tells digits alone") for _ in prompts]

    def close(self) -> None: ...
