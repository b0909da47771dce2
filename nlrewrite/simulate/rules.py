"""The rule reader applied to every sentence and every position of one split.

In: explanations and the windows of a split. Out: `levels.safetensors` (latent, position, level of every pair in which a
sentence speaks), `outcomes.parquet` (one row a latent: ok, unexplained or unparseable, and whose sentence was read) and
`distributions.json` (what the reader's levels mean as distributions over digits).
Invariant: pairs that are not named have digit 0 for certain, and latents that cannot be simulated have no pairs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations.statistics import write_table
from nlrewrite.artifacts import Folder
from nlrewrite.language.reading import DIGITS, Contexts, distributions
from nlrewrite.language.sentence import Unparsed, parse
from nlrewrite.language.vocabulary import Vocabulary
from nlrewrite.seeds import generator
from nlrewrite.specs import SimulateSpec
from nlrewrite.text.positions import positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    import pandas as pd

    from nlrewrite.steps import Running

LEVELS = "levels.safetensors"


@dataclass(frozen=True)
class Simulated:
    """Pairs (latent, position) in which the simulator sees the latent; latents ascending, then positions."""

    latent: np.ndarray
    position: np.ndarray
    level: np.ndarray
    digits_ZD: np.ndarray
    """What each level means as a distribution over the ten digits."""
    explained: np.ndarray
    """[L]: whether the latent's sentence could be read."""

    def at(self, rows_P: np.ndarray) -> "Simulated":
        """The pairs at the positions chosen by a mask."""
        kept = rows_P[self.position]
        return Simulated(self.latent[kept], self.position[kept], self.level[kept], self.digits_ZD, self.explained)

    @property
    def levels(self) -> int:
        return len(self.digits_ZD)

    @property
    def expected(self) -> np.ndarray:
        """Expected digit at each level."""
        return self.digits_ZD @ np.arange(DIGITS)


def build(spec: SimulateSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    from safetensors.numpy import save_file

    sentences = read_sentences(inputs["explanations"])
    source = shuffled(sentences, spec.seed) if spec.shuffle else np.arange(len(sentences))
    where = positions(read_windows(inputs["tokens"], spec.split))
    contexts = Contexts(where, Vocabulary(tuple(token_texts(inputs["subject"].root()))), spec.window)
    pairs: list[tuple[int, np.ndarray, np.ndarray]] = []
    outcomes: list[str] = []
    with running.progress.stage(f"simulate {spec.split}", len(sentences)) as advance:
        for latent, origin in enumerate(source):
            sentence = sentences[origin]
            try:
                if sentence:
                    pairs.append((latent, *contexts.levels(parse(sentence))))
                outcomes.append("ok" if sentence else "unexplained")
            except Unparsed:
                outcomes.append("unparseable")
            advance(1)
    nothing = np.zeros(0)
    latent = np.concatenate([nothing, *(np.full(len(position), latent) for latent, position, _ in pairs)])
    position = np.concatenate([nothing, *(position for _, position, _ in pairs)])
    level = np.concatenate([nothing, *(level for _, _, level in pairs)])
    columns = {"latent": latent.astype(np.int32), "position": position.astype(np.int32), "level": level.astype(np.int8)}
    save_file(columns, out / LEVELS)
    said = {"latent": np.arange(len(sentences), dtype=np.int32), "sentence_of": source.astype(np.int32)}
    write_table({**said, "outcome": np.array(outcomes)}, out / "outcomes.parquet")
    (out / "distributions.json").write_text(json.dumps({"levels": distributions().tolist()}))


def read(folder: Folder) -> Simulated:
    from safetensors.numpy import load_file

    arrays = load_file(folder.path(LEVELS))
    table = np.array(json.loads(folder.path("distributions.json").read_text())["levels"])
    explained = (read_outcomes(folder)["outcome"] == "ok").to_numpy()
    return Simulated(arrays["latent"], arrays["position"], arrays["level"], table, explained)


def read_outcomes(folder: Folder) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_parquet(folder.path("outcomes.parquet"))


def read_sentences(folder: Folder) -> list[str]:
    import pandas as pd

    return pd.read_parquet(folder.path("explanations.parquet"), columns=["sentence"])["sentence"].tolist()


def shuffled(sentences: list[str], seed: int) -> np.ndarray:
    """For each latent whose sentence it gets: another explained latent's, each used once."""
    explained = np.flatnonzero([bool(sentence) for sentence in sentences])
    order = generator(seed, "simulate", "shuffle").permutation(explained)
    source = np.arange(len(sentences))
    source[order] = np.roll(order, 1)
    return source
