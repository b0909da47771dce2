"""A lexical gate applied to every position of one split: a rung of its own between the lookup tables and the sentences.

In: gates, the windows of a split, and the sentences' simulation of the same split. Out: the files of a simulation
(`simulate/rules.py`), so that calibrators and the evaluation cannot tell the two apart. Invariant: outside its gate a
latent has level 0; inside, its level is 1 or more; nothing here has seen an activation.

| rung            | outside | inside                         | a latent can be simulated if      |
|-----------------|---------|--------------------------------|-----------------------------------|
| gate            | 0       | 1                              | it has a gate                     |
| gate + sentence | 0       | 1 + the level of its sentence  | it has a gate and a readable sentence |

As digits: outside is 0 for certain. The gate alone says nothing of how active a latent is, so that all digits from 1
are alike. Where the gate is open and the sentence silent, the digit is mostly 0, and a little of its neighbour.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations.statistics import write_table
from nlrewrite.artifacts import Folder
from nlrewrite.explain.gate import Gates, read_gates
from nlrewrite.language.reading import BLUR, DIGITS, distributions
from nlrewrite.simulate import rules
from nlrewrite.simulate.rules import LEVELS, Simulated, read_outcomes
from nlrewrite.specs import GatingSpec
from nlrewrite.text.positions import positions
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running


def build(spec: GatingSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    from safetensors.numpy import save_file

    given = inputs["simulation"].manifest.spec["split"]
    assert given == spec.split, f"gating on the {spec.split} split was given a simulation of the {given} split"
    gates, said = read_gates(inputs["gates"]), rules.read(inputs["simulation"])
    token_P = positions(read_windows(inputs["tokens"], spec.split)).token
    with running.progress.stage(f"gates on {spec.split}", gates.latents) as advance:
        gated = inside(gates, token_P, said, spec.sentence)
        advance(gates.latents)
    columns = {
        "latent": gated.latent.astype(np.int32),
        "position": gated.position.astype(np.int32),
        "level": gated.level.astype(np.int8),
    }
    save_file(columns, out / LEVELS)
    every = np.arange(gates.latents, dtype=np.int32)
    source, outcome = every, np.full(gates.latents, "ok", dtype=object)
    if spec.sentence:
        of_sentence = read_outcomes(inputs["simulation"])
        source, outcome = of_sentence["sentence_of"].to_numpy(), of_sentence["outcome"].to_numpy(dtype=object)
    table = {"latent": every, "sentence_of": source, "outcome": np.where(gates.there, outcome, "unexplained")}
    write_table(table, out / "outcomes.parquet")
    (out / "distributions.json").write_text(json.dumps({"levels": gated.digits_ZD.tolist()}))


def inside(gates: Gates, token_P: np.ndarray, said: Simulated, sentence: bool) -> Simulated:
    """Every pair in which a gate is open, with its level; `said` is heard inside if `sentence`."""
    explained = gates.there & said.explained if sentence else gates.there
    order = np.argsort(token_P, kind="stable")
    kept = explained[gates.latent]
    latent_M, token_M = gates.latent[kept], gates.token[kept]
    starts, ends = (np.searchsorted(token_P[order], token_M, side=side) for side in ("left", "right"))
    counts = ends - starts
    before = np.cumsum(counts) - counts
    place = np.arange(int(counts.sum())) + np.repeat(starts - before, counts)
    pair = np.sort(np.repeat(latent_M.astype(np.int64), counts) * len(token_P) + order[place])
    latent, position = np.divmod(pair, max(len(token_P), 1))
    level = np.ones(len(pair), dtype=np.int64)
    if sentence and len(pair):
        heard = said.latent.astype(np.int64) * len(token_P) + said.position
        at = np.minimum(np.searchsorted(pair, heard), len(pair) - 1)
        open_ = pair[at] == heard
        level[at[open_]] += said.level[open_]
    digits = of_gated(said.digits_ZD) if sentence else of_gate()
    return Simulated(latent.astype(np.int32), position.astype(np.int32), level.astype(np.int8), digits, explained)


def of_gate() -> np.ndarray:
    """What the two levels of a gate mean as digits."""
    table = np.zeros((2, DIGITS))
    table[0, 0] = 1
    table[1, 1:] = 1 / (DIGITS - 1)
    return table


def of_gated(sentence_ZD: np.ndarray) -> np.ndarray:
    """What the levels mean where a sentence speaks inside the gate."""
    silent = np.zeros((1, DIGITS))
    silent[0, :2] = 1 - BLUR, BLUR
    return np.concatenate([distributions()[:1], silent, sentence_ZD[1:]])
