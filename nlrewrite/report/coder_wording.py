"""What a page about coders says in sentences: the result, what it stands beside, and what a careful reader would ask.

In: facts of coders and what was measured of them. Out: strings. Invariant: a loss is never told without the original
model's, an added loss not without its interval, and what was not measured is said to be missing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nlrewrite.report.coder_facts import CoderFacts
from nlrewrite.report.facts import coder_kind
from nlrewrite.report.wording import MISSING, count, many, number, percent, percent_interval

Row = Mapping[str, Any]
OVER = {"k": "k", "penalty": "penalty", "seed": "seed", "layer": "layer", "width": "number of latents"}


def title(coders: Sequence[CoderFacts], frontier: Row | None, replacement: Row | None) -> str:
    if replacement is not None:
        return f"{many(len(coders), 'layer')} replaced by {'its coder' if len(coders) == 1 else 'their coders'} at once"
    places = list(dict.fromkeys(coder.place for coder in coders))
    where = places[0] if len(places) == 1 else "several places"
    if frontier is not None:
        by = f", by {OVER[frontier['over']]}" if frontier["over"] in OVER else ""
        return f"What {many(len(coders), 'coder')} of {where} {'cost' if len(coders) > 1 else 'costs'}{by}"
    return f"{'A coder' if len(coders) == 1 else many(len(coders), 'coder')} of {where}"


def added(row: Row, name: str = "delta_ce") -> str:
    return f"{value(row, name)} {between(row, name)} nats"


def value(row: Row, name: str) -> str:
    """A number with as many decimals as its interval is worth."""
    return number(row[name], _decimals(row, name))


def between(row: Row, name: str) -> str:
    decimals = _decimals(row, name)
    return f"[{number(row[f'{name}_low'], decimals)}, {number(row[f'{name}_high'], decimals)}]"


def _decimals(row: Row, name: str) -> int:
    width = row[f"{name}_high"] - row[f"{name}_low"]
    return min(5, max(3, 1 + math.ceil(-math.log10(width)))) if width > 0 else 3


def recovered(row: Row) -> str:
    """The share of what mean ablation costs; nothing where that costs nothing that can be told from zero."""
    if row["recovered"] is None:
        return "mean ablation does not measurably cost more than the model itself, so there is no share to recover"
    interval = percent_interval(row["recovered_low"], row["recovered_high"])
    return f"it recovers {percent(row['recovered'])} {interval} of what setting the output to its mean costs"


def lead(coders: Sequence[CoderFacts], frontier: Row | None, replacement: Row | None) -> list[str]:
    """The result in a few sentences."""
    if frontier is not None:
        return _of_frontier(frontier, coders)
    if replacement is not None:
        return _of_replacement(replacement)
    return [_learned(coder) for coder in coders]


def _of_frontier(found: Row, coders: Sequence[CoderFacts]) -> list[str]:
    names = {coder.label: coder.name for coder in coders}
    rows = sorted(found["coders"], key=lambda row: row["ce"])
    best, sparsest = rows[0], min(rows, key=lambda row: (row["l0"], row["ce"]))
    said = [
        f"The model's own next-token loss on this text is {number(found['original']['ce'])} nats. Of "
        f"{many(len(rows), 'coder')} the one with the lowest loss ({names[best['label']]}, {best['l0']:.1f} latents "
        f"active on a token) adds {added(best)} in place of what it stands for; {recovered(best)}."
    ]
    one_place = len({row["site"] for row in rows}) == 1
    if one_place and sparsest["label"] != best["label"]:
        said.append(
            f"The sparsest ({names[sparsest['label']]}, {sparsest['l0']:.1f} active) adds {added(sparsest)}; "
            f"{recovered(sparsest)}."
        )
    if one_place and len(rows) > 1:
        on = sum(row["front"] for row in rows)
        said.append(
            "Every coder lies on the front: none has both fewer active latents and less loss than another."
            if on == len(rows)
            else f"{on} of the {len(rows)} {'lies' if on == 1 else 'lie'} on the front; for each of the rest there is "
            f"another with no more active latents and no more loss."
        )
    return said


def _of_replacement(found: Row) -> list[str]:
    layers = [str(row["layer"]) for row in found["layers"]]
    named = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(layers[:-1])} and {layers[-1]}"
    said = [
        f"With {named} replaced by {'its coder' if len(layers) == 1 else 'their coders at once'} the next-token loss "
        f"is {number(found['all']['ce'])} nats, where the model's own is {number(found['original']['ce'])}: "
        f"{added(found['all'])} more. Measured against setting all these outputs to their means, which adds "
        f"{added(found['mean'])}, {recovered(found['all'])}."
    ]
    together = found["together"]
    if together is not None:
        sign = "more" if together["beyond"] > 0 else "less"
        clear = together["beyond_low"] > 0 or together["beyond_high"] < 0
        how = (
            f"together they cost {sign} than that: {added(together, 'beyond')} beyond it"
            if clear
            else f"what they cost together cannot be told from that ({between(together, 'beyond')} beyond it)"
        )
        most = max(found["layers"], key=lambda row: row["all_but"]["saved"])
        said.append(
            f"One at a time they add {added(together, 'summed')} in sum; {how}. Leaving layer {most['layer']} as it is "
            f"saves most: {added(most['all_but'], 'saved')}."
        )
    return said


def _learned(coder: CoderFacts) -> str:
    told = coder.training
    kind = kind_of(coder)
    start = f"{'An' if kind[0] in 'aeiou' else 'A'} {kind} of {coder.place} with {count(coder.spec['width'])} latents"
    if told.get("fvu") is None:
        return f"{start}; how much of the variance it explains was not measured here."
    l0 = coder.record.get("l0")
    active = "" if l0 is None else f", {l0:.1f} of them active on a token on average,"
    said = f"{start}{active} leaves {percent(told['fvu'])} of the variance there unexplained"
    if told.get("tokens_seen"):
        said += f" after {count(int(told['tokens_seen']))} tokens of training"
    if told.get("live_share") is not None:
        said += f"; {percent(told['live_share'])} of its latents are live (active on more than one token in 10,000)"
    cost = told.get("ce") or {}
    if cost.get("coder") is None or cost.get("original") is None:
        return f"{said}."
    share = cost.get("recovered")
    of_mean = f", {percent(share)} of the way back from the output at its mean" if share is not None else ""
    return (
        f"{said}. In place of what it stands for the next-token loss is {number(cost['coder'])} nats, where the "
        f"model's own is {number(cost['original'])}{of_mean}; that was measured once, at the end of training."
    )


def kind_of(coder: CoderFacts) -> str:
    return coder_kind(coder.spec, coder.record)


def caveats(frontier: Row | None, replacement: Row | None) -> list[str]:
    found = frontier if frontier is not None else replacement
    if found is None:
        return []
    said = [
        f"Losses are measured on {count(found['tokens'])} tokens of the report split: "
        f"{many(found['windows'], 'window')} of {many(found['documents'], 'document')} "
        f"({many(found['groups'], 'group')} of near-duplicates). A coder from elsewhere may have been trained on them.",
        f"Intervals are 95%, by bootstrap over those groups ({count(found['resamples'])} resamples), with the same "
        f"text in every arm, so that a difference is surer than the losses it is taken of.",
        f"The mean output is that over {count(found['mean_tokens'])} tokens of the explain split, not of the text that "
        f"is measured.",
        "Everything is replaced at every token of a window, the first one included, whose activations are often far "
        "larger than the rest and weigh much in the unexplained variance.",
    ]
    if frontier is not None:
        said.append(
            "A latent counts as silent when it is active on none of these tokens; on more text there are fewer such. "
            "The share of resamples says how often a coder would lie on the front with other documents."
        )
        if frontier["over"] == "seed":
            said.append("Coders differ in their seeds alone: the spread between them is that of training.")
    return said


def trained_on(coder: CoderFacts) -> str:
    """The data of a coder, in the words of its record or of its spec."""
    if coder.record.get("data"):
        return str(coder.record["data"])
    data = coder.spec.get("data") or {}
    if coder.spec.get("kind", "trained") != "trained":
        return MISSING
    if data.get("kind") == "hub":
        return " ".join(str(data[name]) for name in ("dataset", "config") if data.get(name))
    return {"folder": "a folder of text", "rows": "a file of token ids"}.get(data.get("kind", ""), "the train split")
