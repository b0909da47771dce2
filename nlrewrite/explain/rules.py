"""The rule explainer: learns a sentence of the rule language for every latent, greedily, against held-out documents.

In: the tokens and activations of the explain split. Out: `explanations.parquet`: latent, sentence, quotes, words, the
activation that strength 9 stands for, the share of the latent's energy the sentence accounts for, and why there is none
where there is none. Invariant: a part that hurts on documents it was not chosen on is refused, and a sentence keeps to
its limits of words and quotes.

A latent's activations, in ninths of a strong one, are predicted by the level of a rule (`language/sentence.py`). Each
round adds what lowers the squared error most (`search.py`) and settles all amounts anew.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.activations.pairs import ByLatent, read
from nlrewrite.activations.statistics import latents_counted, write_table
from nlrewrite.artifacts import Folder
from nlrewrite.explain.evidence import Evidence
from nlrewrite.explain.search import Part, Search
from nlrewrite.language.reading import Contexts
from nlrewrite.language.sentence import SILENT, STRONGEST, Change, Rule, words, write
from nlrewrite.language.vocabulary import Vocabulary
from nlrewrite.seeds import generator
from nlrewrite.specs import ExplainSpec
from nlrewrite.text.positions import positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running

PATIENCE = 8  # parts refused by the held-out documents before the sentence is done
HELD_OUT_SHARE = 0.3
STRONG = 0.98  # the quantile of a latent's activations that strength 9 stands for


@dataclass(frozen=True)
class Learned:
    rule: Rule
    scale: float
    energy_explained: float


def build(spec: ExplainSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    latents = latents_counted(inputs["activations"])
    grouped = read(inputs["activations"]).by_latent(latents)
    where = positions(read_windows(inputs["tokens"], "explain"))
    vocabulary = Vocabulary(tuple(token_texts(inputs["subject"].root())))
    groups = np.unique(where.group)
    draws = generator(spec.seed, "explain", "held-out")
    held = draws.permutation(groups)[: int(HELD_OUT_SHARE * len(groups))]
    # the reader's own window only ever cuts farther back than a rule may look
    contexts = Contexts(where, vocabulary, window=spec.reach + 1)
    evidence = Evidence(contexts, spec.reach, np.isin(where.group, held))
    rows: list[dict[str, object]] = []
    with running.progress.stage("explain", latents) as advance:
        for latent in range(latents):
            rows.append({"latent": latent, **_explain(grouped, latent, evidence, spec)})
            advance(1)
    types = {"latent": np.int32, "quotes": np.int32, "words": np.int32, "scale": np.float32}
    columns = {name: np.array([row[name] for row in rows], dtype=types.get(name)) for name in rows[0]}
    write_table(columns, out / "explanations.parquet")


def _explain(grouped: ByLatent, latent: int, evidence: Evidence, spec: ExplainSpec) -> dict[str, object]:
    position, value = grouped.of(latent)
    if len(position) < spec.min_active:
        why = f"active on {len(position)} tokens, fewer than {spec.min_active}"
        return {"sentence": "", "quotes": 0, "words": 0, "scale": 0.0, "energy_explained": 0.0, "why_none": why}
    learned = learn(position, value, evidence, spec)
    sentence = write(learned.rule)
    if not learned.rule.strengths:
        why = "no token predicts it on held-out documents"
        return {"sentence": "", "quotes": 0, "words": 0, "scale": 0.0, "energy_explained": 0.0, "why_none": why}
    return {
        "sentence": sentence,
        "quotes": learned.rule.quotes,
        "words": words(sentence),
        "scale": learned.scale,
        "energy_explained": learned.energy_explained,
        "why_none": "",
    }


def learn(position: np.ndarray, value: np.ndarray, evidence: Evidence, spec: ExplainSpec) -> Learned:
    """The rule for a latent that is active with `value` at `position` and nowhere else."""
    scale = float(np.quantile(value, STRONG))
    search = Search(position, value * (STRONGEST / scale), evidence)
    energy = float(np.square(value * (STRONGEST / scale)).sum())
    parts: list[Part] = []
    refused = 0
    while refused < PATIENCE:
        found = search.best(quotes_left=spec.max_quotes - sum(part.quotes for part in parts))
        if not found:
            break
        if search.helps_held_out(found):
            for part in found:
                search.add(part)
                search.refuse((part,))
            parts = search.settle([*parts, *found])
        else:
            search.refuse(found)
            refused += 1
    parts = search.settle(parts, everywhere=True)
    while words(write(_rule(parts, search))) > spec.max_words:
        search.remove(parts.pop())
        parts = search.settle(parts, everywhere=True)
    return Learned(_rule(parts, search), scale, search.energy_explained(energy))


def _rule(parts: list[Part], search: Search) -> Rule:
    """What the parts say; a change that takes everything away wherever it holds is an exclusion."""
    strengths = [(part.item, part.amount) for part in parts if part.place is None and isinstance(part.item, bytes)]
    changes = [
        Change(part.place, part.item, SILENT if search.silences(part) else part.amount)
        for part in parts
        if part.place is not None
    ]
    return Rule(tuple(strengths), tuple(changes) if strengths else ()).normal()
