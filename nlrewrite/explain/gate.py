"""Lexical gates: for each latent the few tokens on which it may be active at all, learned on the explain split.

In: the tokens and activations of the explain split. Out: `gates.parquet` (a row per latent: how many tokens the gate
names, the share of its activations and of all tokens that they pass, and the gate as a clause in English) and
`members.parquet` (latent, token id). Invariant: a gate is a set of spellings of the current token: it knows no context
and no true activation outside the explain split, and whoever reads the clause can apply it.

A gate is greedy: tokens on which the latent is most often active come first, ties by id, until `keep` of its
activations pass. That is the least traffic for the share kept, up to the last token that is taken. A gate that would
need more tokens than it may name stops there, and says what share it keeps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations.pairs import ByLatent, read
from nlrewrite.activations.statistics import latents_counted, write_table
from nlrewrite.artifacts import Folder
from nlrewrite.language.vocabulary import Vocabulary, quote
from nlrewrite.specs import GatesSpec
from nlrewrite.text.positions import positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running

GATES, MEMBERS = "gates.parquet", "members.parquet"
NEVER = "Never active."


@dataclass(frozen=True)
class Gate:
    """One latent's gate: token ids in the order in which they were taken, and what passes them."""

    tokens: np.ndarray
    kept: float
    """Share of the latent's activations."""
    passed: float
    """Share of all positions."""


@dataclass(frozen=True)
class Gates:
    """The gates of L latents as pairs (latent, token id), latents ascending."""

    latent: np.ndarray
    token: np.ndarray
    latents: int

    @property
    def there(self) -> np.ndarray:
        """[L]: which latents have a gate."""
        return np.bincount(self.latent, minlength=self.latents) > 0


def build(spec: GatesSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    latents = latents_counted(inputs["activations"])
    grouped = read(inputs["activations"]).by_latent(latents)
    texts = token_texts(inputs["subject"].root())
    first_V = Vocabulary(tuple(texts)).first_V  # ids that are spelled alike are one token
    token_P = first_V[positions(read_windows(inputs["tokens"], "explain")).token]
    seen_V = np.bincount(token_P, minlength=len(texts))
    found: list[Gate] = []
    with running.progress.stage("gates", latents) as advance:
        for latent in range(latents):
            found.append(gate(grouped, latent, token_P, seen_V, spec))
            advance(1)
    spelled = np.argsort(first_V, kind="stable")
    bounds = np.searchsorted(first_V[spelled], np.arange(len(texts) + 1))
    members = [
        np.sort(np.concatenate([spelled[bounds[token] : bounds[token + 1]] for token in each.tokens]))
        if len(each.tokens)
        else np.zeros(0, dtype=np.int64)
        for each in found
    ]
    columns = {
        "latent": np.arange(latents, dtype=np.int32),
        "tokens": np.array([len(each.tokens) for each in found], dtype=np.int32),
        "kept": np.array([each.kept for each in found], dtype=np.float32),
        "passed": np.array([each.passed for each in found], dtype=np.float32),
        "clause": np.array([clause([texts[token] for token in each.tokens]) for each in found], dtype=object),
    }
    write_table(columns, out / GATES)
    sizes = [len(each) for each in members]
    pairs = {
        "latent": np.repeat(np.arange(latents, dtype=np.int32), sizes),
        "token": np.concatenate([np.zeros(0, dtype=np.int64), *members]).astype(np.int32),
    }
    write_table(pairs, out / MEMBERS)


def gate(grouped: ByLatent, latent: int, token_P: np.ndarray, seen_V: np.ndarray, spec: GatesSpec) -> Gate:
    """The gate of one latent, given the token of every position and how often each token is there."""
    position, _ = grouped.of(latent)
    if not len(position):
        return Gate(np.zeros(0, dtype=np.int64), 0.0, 0.0)
    tokens, active = np.unique(token_P[position], return_counts=True)
    order = np.lexsort((tokens, -active / seen_V[tokens]))[: spec.tokens]
    covered = np.cumsum(active[order])
    wanted = np.ceil(spec.keep * len(position) - 1e-9)
    taken = order[: int(np.searchsorted(covered, wanted)) + 1]
    return Gate(
        tokens[taken], float(active[taken].sum() / len(position)), float(seen_V[tokens[taken]].sum() / len(token_P))
    )


def clause(texts: list[bytes]) -> str:
    """The gate in English."""
    if not texts:
        return NEVER
    names = [quote(text) for text in texts]
    return f"Active only on {names[0] if len(names) == 1 else ', '.join(names[:-1]) + ' or ' + names[-1]}."


def read_gates(folder: Folder) -> Gates:
    import pandas as pd

    members = pd.read_parquet(folder.path(MEMBERS))
    latents = len(pd.read_parquet(folder.path(GATES), columns=["latent"]))
    return Gates(members["latent"].to_numpy(), members["token"].to_numpy(), latents)
