"""The page about coders: one file that stands alone, in the light and in the dark, without any script.

In: facts of coders, what was measured of them, figures, provenance. Out: HTML. Invariant: every string goes through
`markup`, which escapes it, and nothing is referred to outside the file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nlrewrite.report import coder_wording as wording
from nlrewrite.report import page
from nlrewrite.report.coder_facts import CoderFacts
from nlrewrite.report.figure import Figure
from nlrewrite.report.markup import Markup, element, visible
from nlrewrite.report.tables import Column, row, table
from nlrewrite.report.wording import MISSING, count, number, percent, percent_interval

el = element
Row = dict[str, Any]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
SECTIONS = {"figures": "Figures", "table": "Numbers", "coders": "The coders", "provenance": "Provenance"}


def coders_page(
    coders: Sequence[CoderFacts],
    frontier: Row | None,
    replacement: Row | None,
    figures: Sequence[Figure],
    made: Mapping[str, Any],
) -> str:
    """The whole document."""
    title = wording.title(coders, frontier, replacement)
    numbers = _frontier(frontier, coders) if frontier is not None else None
    if replacement is not None:
        numbers = _replacement(replacement)
    absent = {"figures": not figures, "table": numbers is None}
    links = (el("a", name, href=f"#{key}") for key, name in SECTIONS.items() if not absent.get(key))
    first, *others = wording.lead(coders, frontier, replacement)
    caveats = wording.caveats(frontier, replacement)
    body = el(
        "body",
        el("a", "Skip to the figures", class_="skip", href="#figures"),
        el(
            "header",
            el("p", "Sparse coders of a language model", class_="kicker"),
            el("h1", title),
            el("p", first, class_="lead"),
            *(el("p", each, class_="lead") for each in others),
        ),
        el("nav", el("div", *links), aria_label="Sections"),
        el(
            "main",
            el("section", el("h2", "Figures"), el("div", *map(page.framed, figures), class_="figures"), id="figures")
            if figures
            else None,
            el("section", el("h2", "Numbers"), numbers, id="table") if numbers is not None else None,
            el("section", el("h2", "Before you quote this"), _notes(caveats)) if caveats else None,
            el("section", el("h2", "The coders"), _records(coders), id="coders"),
        ),
        page.provenance(made),
    )
    return page.document(title, body, POLICY)


def _notes(said: Sequence[str]) -> Markup:
    return el("ul", *(el("li", each) for each in said), class_="notes")


# -- numbers ----------------------------------------------------------------------------------------------------------


def _frontier(found: Row, coders: Sequence[CoderFacts]) -> Markup:
    columns = (
        Column("Coder"),
        Column("Active latents", True),
        Column("Unexplained", True),
        Column("Silent", True),
        Column("Loss", True),
        Column("Added loss", True),
        Column("KL", True),
        Column("Recovered", True),
    )
    measured = {each["label"]: each for each in found["coders"]}
    body = [row(columns, _coder(measured[coder.label], coder)) for coder in coders]
    body.append(el("tr", el("th", "Ends of the scale", colspan=len(columns), scope="colgroup", class_="group")))
    blank = [MISSING] * 3
    body.append(row(columns, ("Original model", *blank, *_losses(found["original"], own=True), MISSING)))
    for each in found["ablations"]:
        named = [f"Output at {'its mean' if each['arm'] == 'mean' else 'zero'}", el("small", each["site"])]
        body.append(row(columns, (named, *blank, *_losses(each), MISSING)))
    words = "What every coder costs"
    about = (
        ". Added loss and KL are measured against the original model; recovered is the share of what mean ablation "
        "costs. Brackets: 95% intervals."
    )
    whole = table([el("strong", words), about], columns, body, words)
    one_place = len({each["site"] for each in found["coders"]}) == 1
    return el("div", whole, _front(measured, coders) if one_place and len(coders) > 1 else None)


def _coder(found: Row, coder: CoderFacts) -> tuple[object, ...]:
    return (
        [coder.name, el("small", f"{found['activation']}, {count(found['latents'])} latents")],
        _latents(found, "l0"),
        _unexplained(found, "fvu"),
        percent(found["dead_share"]),
        *_losses(found),
        _share(found, "recovered"),
    )


def _front(measured: Mapping[str, Row], coders: Sequence[CoderFacts]) -> Markup:
    columns = (
        Column("Coder"),
        Column("The next coder"),
        Column("Active latents", True),
        Column("On the front", True),
        Column("In resamples", True),
        Column("The next one's loss is higher by", True),
    )
    names = {coder.label: coder.name for coder in coders}
    body = []
    for each in sorted(measured.values(), key=lambda each: each["l0"]):
        following = each["next"]
        known = following is not None
        cells = (
            names[each["label"]],
            names[following["label"]] if known else MISSING,
            f"{each['l0']:.1f}",
            "yes" if each["front"] else "no",
            percent(each["front_share"]),
            _with_interval(*_told(following, "delta_ce")) if known else MISSING,
        )
        body.append(row(columns, cells))
    words = "Which coders no other beats"
    about = (
        ". A coder is on the front when none has at most as many active latents and at most its loss; the next one is "
        "that with the next more active latents. Brackets: 95% intervals of paired differences."
    )
    return table([el("strong", words), about], columns, body, words)


def _losses(found: Row, own: bool = False) -> tuple[object, ...]:
    """Loss, added loss and KL; the original model adds nothing."""
    if own:
        return number(found["ce"]), MISSING, MISSING
    return (
        number(found["ce"]),
        _with_interval(*_told(found, "delta_ce")),
        _with_interval(*_told(found, "kl")),
    )


def _share(found: Row, name: str) -> object:
    if found[name] is None:
        return MISSING
    return _with_interval(percent(found[name]), percent_interval(found[f"{name}_low"], found[f"{name}_high"]))


def _unexplained(found: Row, name: str) -> object:
    """A share that may be small, and then has two figures."""
    if found[name] is None:
        return MISSING
    points = [100 * found[f"{name}{end}"] for end in ("", "_low", "_high")]
    value, low, high = (f"{each:.0f}" if abs(each) >= 10 else f"{each:.2g}" for each in points)
    return _with_interval(f"{value}%", f"[{low}, {high}]")


def _told(found: Row, name: str) -> tuple[str, str]:
    return wording.value(found, name), wording.between(found, name)


def _with_interval(value: str, interval: str) -> list[object]:
    return [value, el("small", interval)]


def _replacement(found: Row) -> Markup:
    columns = (
        Column("Arm"),
        Column("Loss", True),
        Column("Added loss", True),
        Column("KL", True),
        Column("Recovered", True),
    )
    body = [
        row(columns, ("Original model", *_losses(found["original"], own=True), MISSING)),
        row(columns, ("All replaced by coders", *_losses(found["all"]), _share(found["all"], "recovered"))),
        row(columns, ("All outputs at their mean", *_losses(found["mean"]), MISSING)),
        row(columns, ("All outputs at zero", *_losses(found["zero"]), MISSING)),
    ]
    words = "All layers named, at once"
    whole = table([el("strong", words), ". Brackets: 95% intervals."], columns, body, words)
    return el("div", whole, _layers(found))


def _layers(found: Row) -> Markup:
    several = found["together"] is not None
    columns = (
        Column("Layer"),
        Column("Added alone", True),
        *((Column("Loss without it", True), Column("Saved by leaving it", True)) if several else ()),
        Column("Unexplained", True),
        *((Column("with all replaced", True),) if several else ()),
        Column("Active latents", True),
        *((Column("with all replaced", True),) if several else ()),
    )
    body = []
    for each in found["layers"]:
        alone, left = each["alone"], each["all_but"]
        cells: list[object] = [
            [f"layer {each['layer']}", el("small", each["site"])],
            _with_interval(*_told(alone, "delta_ce")),
        ]
        if several:
            cells += [number(left["ce"]), _with_interval(*_told(left, "saved"))]
        for name, shown in (("fvu", _unexplained), ("l0", _latents)):
            cells += [shown(each[where], name) for where in (("clean", "patched") if several else ("clean",))]
        body.append(row(columns, cells))
    words = "Layer by layer"
    about = ". Alone: only this layer is replaced. Without it: all the others are, and this one is left as it is."
    return table([el("strong", words), about], columns, body, words)


def _latents(found: Row, name: str) -> object:
    """A mean number of latents; exactly k of them have no interval worth showing."""
    low, value, high = (f"{found[f'{name}{end}']:.1f}" for end in ("_low", "", "_high"))
    return value if low == high else _with_interval(value, f"[{low}, {high}]")


# -- records ----------------------------------------------------------------------------------------------------------


def _records(coders: Sequence[CoderFacts]) -> Markup:
    columns = (
        Column("Coder"),
        Column("Kind"),
        Column("Where"),
        Column("From"),
        Column("Steps", True),
        Column("Tokens", True),
        Column("Unexplained", True),
        Column("Live", True),
    )
    body = [row(columns, _record(coder)) for coder in coders]
    words = "What each coder is"
    about = (
        ". From its record and its training; unexplained variance is that on held-out text at the end of training, "
        "or as measured when the coder was fetched."
    )
    return table([el("strong", words), about], columns, body, words)


def _kept(coder: CoderFacts, activation: str) -> str:
    """How many latents a token keeps: k where the coder has one, else the mean that was measured."""
    k, l0 = coder.record.get("k") or coder.spec.get("k", MISSING), coder.record.get("l0")
    if activation in ("topk", "batchtopk") or l0 is None:
        return f"k = {k}"
    return f"{l0:.1f} active on average"


def _record(coder: CoderFacts) -> tuple[object, ...]:
    record, training, spec = coder.record, coder.training, coder.spec
    activation = str(spec.get("activation", "topk" if spec.get("kind", "trained") == "trained" else ""))
    steps = record.get("steps", spec.get("steps"))
    tokens = record.get("tokens") or training.get("tokens_seen")
    where = [coder.place, el("small", visible(str(training.get("site") or record.get("hook_out") or "")))]
    model, revision = record.get("model"), record.get("revision")
    of = el("small", visible(f"{model} at {str(revision)[:12]}" if revision else str(model))) if model else None
    source, data = str(record.get("source") or spec.get("kind", "trained")), wording.trained_on(coder)
    on = el("small", f"on {visible(data)}") if data != MISSING else None
    kept = ", ".join(
        part for part in (activation, _kept(coder, activation), f"{count(int(spec['width']))} latents") if part
    )
    return (
        [coder.name, el("small", coder.artifact)],
        [wording.kind_of(coder), el("small", kept)],
        where,
        ["trained here" if source == "trained" else visible(source), of, on],
        count(int(steps)) if steps else MISSING,
        count(int(tokens)) if tokens else MISSING,
        percent(training.get("fvu", record.get("fvu"))),
        percent(training.get("live_share")),
    )
