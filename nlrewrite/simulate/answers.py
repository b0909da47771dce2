"""Answers of a language model about latents and contexts of one split, as files and as what calibrators read.

In: answers, and the position that each is about. Out: blocks of 64 latents (`answers-*.safetensors`: log-probabilities
of the ten digits, their mass, outcomes), `contexts.safetensors` and `outcomes.parquet` (a row a latent, with counts of
its questions by outcome); and `Answered`, a simulation like any other. Invariants: every log-probability that was read
is kept, so that all that follows can be done again for nothing; an answer that is missing is NaN, never a number.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nlrewrite.activations.statistics import write_table
from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.language.reading import DIGITS
from nlrewrite.llm.engine import Outcome
from nlrewrite.questions import AskSpec
from nlrewrite.simulate import expectation
from nlrewrite.simulate.ask import NOTHING, Asked
from nlrewrite.simulate.expectation import Flavour
from nlrewrite.simulate.rules import Simulated

BLOCK = 64
"""Latents in a file: a reader of some latents fetches only theirs."""
CONTEXTS = "contexts.safetensors"


def write(out: Path, asked: Asked, position_LS: np.ndarray, explained: np.ndarray, source: np.ndarray) -> None:
    """The files. `source`: whose sentence each latent was read by."""
    from safetensors.numpy import save_file

    save_file({"position": np.ascontiguousarray(position_LS)}, out / CONTEXTS)
    fields = {"logp": asked.logp, "logmass": asked.logmass, "outcome": asked.outcome, "missing": asked.missing}
    if asked.top is not None:
        fields["top"] = np.packbits(asked.top, axis=-1)
    for start in range(0, len(asked.logp), BLOCK):
        part = {name: value[start : start + BLOCK] for name, value in fields.items() if value is not None}
        arrays = {name: np.ascontiguousarray(value) for name, value in part.items()}
        save_file(arrays, out / f"answers-{start // BLOCK:06d}.safetensors")
    _write_outcomes(out, asked, (position_LS != NOTHING) & explained[:, None], explained, source)


def _write_outcomes(
    out: Path, asked: Asked, question_LS: np.ndarray, explained: np.ndarray, source: np.ndarray
) -> None:
    """`question_LS`: where there is a question at all, so that no empty column counts as one that was left out."""
    counts = {each.name.lower(): ((asked.outcome == each) & question_LS).sum(1).astype(np.int32) for each in Outcome}
    answered = ~np.isnan(asked.logp[..., 0]).all(1)
    outcome = np.where(~explained, "unexplained", np.where(answered, "ok", "unparseable"))
    latents = np.arange(len(explained), dtype=np.int32)
    table = {"latent": latents, "sentence_of": source.astype(np.int32), "outcome": outcome}
    write_table({**table, **counts}, out / "outcomes.parquet")


def read(folder: Folder, contexts: int) -> "Answered":
    """The answers, about a split of so many positions."""
    import pandas as pd
    from safetensors.numpy import load_file

    spec = AskSpec.model_validate(folder.manifest.spec)
    names = sorted(each.path for each in folder.manifest.files if each.path.startswith("answers-"))
    blocks = [load_file(folder.path(name)) for name in names]
    arrays = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    top = np.unpackbits(arrays["top"], axis=-1, count=arrays["logp"].shape[-1]) > 0 if "top" in arrays else None
    explained = (pd.read_parquet(folder.path("outcomes.parquet"), columns=["outcome"])["outcome"] == "ok").to_numpy()
    return Answered(
        load_file(folder.path(CONTEXTS))["position"],
        Asked(arrays["logp"], arrays.get("logmass"), arrays["outcome"], top, arrays.get("missing")),
        explained,
        contexts,
        spec.flavour,
    )


# -- as what calibrators read ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """A simulation that was asked for some contexts only; the others are missing."""

    position_LS: np.ndarray
    """[1, S] or [L, S], ascending but for NOTHING."""
    asked: Asked
    explained: np.ndarray
    contexts: int
    flavour: Flavour

    @property
    def by_cases(self) -> bool:
        """Whether each latent was asked about contexts of its own."""
        return len(self.position_LS) > 1

    @property
    def rows(self) -> np.ndarray:
        """The positions that all latents were asked about, ascending."""
        if self.by_cases:
            raise SettingError("each latent was asked about contexts of its own. Use --set ask.contexts=last")
        return self.position_LS[0]

    def scores(self, latents: slice) -> np.ndarray:
        return self._spread(self.columned.scores(latents), latents)

    def digits(self, latents: slice) -> np.ndarray:
        return self._spread(self.columned.digits(latents), latents)

    def at_rows(self) -> "Columned":
        """The same with only the positions that all latents were asked about as contexts."""
        assert not self.by_cases
        return self.columned

    @cached_property
    def columned(self) -> "Columned":
        return Columned(self.asked, self.explained, self.flavour)

    def columns(self, latents: slice, context_BC: np.ndarray) -> np.ndarray:
        """The column in which each latent was asked about each of its contexts: [B, C]; it must have been."""
        position_BS = np.broadcast_to(self.position_LS, (len(self.explained), self.position_LS.shape[1]))[latents]
        order = np.where(position_BS == NOTHING, self.contexts, position_BS)
        base = np.arange(len(order))[:, None] * (self.contexts + 1)
        found = np.searchsorted((order + base).ravel(), (np.maximum(context_BC, 0) + base).ravel())
        column = found.reshape(context_BC.shape) - np.arange(len(order))[:, None] * order.shape[1]
        column = np.clip(column, 0, order.shape[1] - 1)
        right = (np.take_along_axis(order, column, axis=1) == context_BC) | (context_BC < 0)
        assert right.all(), "a case was drawn that was not asked about"
        return column

    def _spread(self, values_BS: np.ndarray, latents: slice) -> np.ndarray:
        """Columns at their positions, NaN elsewhere."""
        out = np.full((len(values_BS), self.contexts, *values_BS.shape[2:]), np.nan, dtype=np.float32)
        position_BS = self.position_LS if len(self.position_LS) == 1 else self.position_LS[latents]
        position_BS = np.broadcast_to(position_BS, values_BS.shape[:2])
        row, column = np.nonzero(position_BS != NOTHING)
        out[row, position_BS[row, column]] = values_BS[row, column]
        return out


@dataclass(frozen=True)
class Columned:
    """The answers with their columns as contexts."""

    asked: Asked
    explained: np.ndarray
    flavour: Flavour

    @property
    def contexts(self) -> int:
        return self.asked.logp.shape[1]

    def scores(self, latents: slice) -> np.ndarray:
        """Expected digit."""
        return self.digits(latents) @ np.arange(DIGITS, dtype=np.float32)

    def levels(self) -> Simulated:
        """Answers rounded to whole digits, as pairs: to look at, not to calibrate."""
        level_LS = np.rint(np.nan_to_num(self.scores(slice(None)))).astype(np.int8)
        latent, column = (each.astype(np.int32) for each in np.nonzero(level_LS > 0))
        return Simulated(latent, column, level_LS[latent, column], np.eye(DIGITS), self.explained)

    def digits(self, latents: slice) -> np.ndarray:
        asked = self.asked
        mass = None if asked.logmass is None else asked.logmass[latents]
        top = None if asked.top is None else asked.top[latents]
        return expectation.probabilities(self.flavour, asked.logp[latents], mass, top)
