"""What a walk over coders found, as Markdown for a terminal and for the Prefect UI.

In: the results.json of a coders-report. Out: a sentence, and tables by name: the coders, how they learned, the front of
a sweep, the layers replaced. Invariant: light to import, and every measured difference has its interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nlrewrite.terminal import interval, number, table

Row = Mapping[str, Any]
POINTS = 12  # points of a curve in its table


def is_of_coders(results: Mapping[str, Any]) -> bool:
    return "coders" in results and "arms" not in results


def headline(results: Mapping[str, Any]) -> str:
    """The finding, in one sentence or two."""
    if "frontier" in results:
        found = results["frontier"]
        front = [row for row in found["coders"] if row["front"]]
        places = {row["site"] for row in found["coders"]}
        told = front if len(places) == 1 else found["coders"]  # coders at several places have no common front
        named = ", ".join(f"{row['value']} (L0 {row['l0']:.1f}, {number(row['ce'])} nats)" for row in told)
        start = "On the front of mean L0 against loss" if len(places) == 1 else "In place of what each stands for"
        return (
            f"{start}: {found['over'] or 'value'} {named}. The subject alone has "
            f"{number(found['original']['ce'])} nats, {len(found['coders'])} coders on {found['tokens']:,} tokens."
        )
    if "replacement" in results:
        found = results["replacement"]
        return (
            f"{_replaced(len(found['layers']))}: {number(found['all']['ce'])} nats, "
            f"{interval(found['all'], 'delta_ce')} above the subject's {number(found['original']['ce'])}; with their "
            f"means in their place: {number(found['mean']['ce'])}."
        )
    coder = results["coders"][0]
    trained = coder["training"]
    cost = trained.get("ce") or {}
    loss = (
        f" In its place the subject's loss is {number(cost['coder'])} nats, where alone it has "
        f"{number(cost['original'])} and with the mean {number(cost['mean'])}."
        if cost
        else ""
    )
    l0 = (coder["record"] or {}).get("l0")
    with_l0 = f", with {l0:.1f} latents active on a token" if l0 is not None else ""
    return (
        f"The coder leaves {100 * trained['fvu']:.3g}% of the variance unexplained at {trained['site']}{with_l0}.{loss}"
    )


def _replaced(layers: int) -> str:
    return "One layer replaced" if layers == 1 else f"All {layers} layers replaced at once"


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """A table for each thing found, by its name."""
    found = {"coders": _coders(results["coders"])}
    if "frontier" in results:
        found["frontier"] = _frontier(results["frontier"])
    if "replacement" in results:
        found["replacement"] = _replacement(results["replacement"])
    curves = [each for each in results["coders"] if each["training"].get("curve")]
    if curves:
        found["curves"] = "\n\n".join(_curve(each) for each in curves)
    return found


def _coders(coders: Sequence[Row]) -> str:
    columns = ("coder", "artifact", "kind", "latents", "L0", "FVU", "live", "held-out loss", "recovered")
    rows: list[tuple[str, ...]] = []
    for each in coders:
        trained, cost = each["training"], each["training"].get("ce") or {}
        rows.append(
            (
                str(each["value"]),
                str(each["artifact"]),
                str((each["record"] or {}).get("kind", "")),
                str(each["spec"].get("width", "")),
                _l0((each["record"] or {}).get("l0")),
                number(trained.get("fvu")),
                number(trained.get("live_share")),
                number(cost.get("coder")),
                number(cost.get("recovered")),
            )
        )
    return table(columns, rows, right=columns[3:])


def _l0(mean: float | None) -> str:
    return "" if mean is None else f"{mean:.1f}"


def _frontier(found: Row) -> str:
    columns = (
        found["over"] or "coder",
        "mean L0",
        "FVU",
        "dead",
        "loss",
        "above the subject",
        "recovered",
        "on the front",
    )
    rows = [("the subject", "", "0.0000", "", number(found["original"]["ce"]), "", "1.0000", "")]
    for row in found["coders"]:
        rows.append(
            (
                str(row["value"]),
                interval(row, "l0"),
                interval(row, "fvu"),
                number(row.get("dead_share")),
                number(row["ce"]),
                interval(row, "delta_ce"),
                interval(row, "recovered"),
                f"{'yes' if row['front'] else 'no'} ({row['front_share']:.0%} of resamples)",
            )
        )
    for row in found["ablations"]:
        rows.append(
            (f"{row['arm']} of {row['site']}", "", "", "", number(row["ce"]), interval(row, "delta_ce"), "", "")
        )
    return table(columns, rows, right=columns[1:7])


def _replacement(found: Row) -> str:
    columns = ("what stands in place", "loss", "above the subject", "KL", "L0", "FVU")
    rows = [("nothing: the subject", number(found["original"]["ce"]), "", "", "", "")]
    for label, name in (("all", "all coders"), ("mean", "all means"), ("zero", "all zeros")):
        row = found[label]
        rows.append((name, number(row["ce"]), interval(row, "delta_ce"), number(row["kl"]), "", ""))
    for layer in found["layers"]:
        alone = layer["alone"]
        reading = layer["clean"]
        rows.append(
            (
                f"{layer['site']} alone",
                number(alone["ce"]),
                interval(alone, "delta_ce"),
                number(alone["kl"]),
                number(reading["l0"]),
                number(reading["fvu"]),
            )
        )
        if layer["all_but"] is not None:
            left = layer["all_but"]
            rows.append(
                (f"all but {layer['site']}", number(left["ce"]), interval(left, "delta_ce"), number(left["kl"]), "", "")
            )
    return table(columns, rows, right=columns[1:])


def _curve(coder: Row) -> str:
    """Some points of a coder's training, the last one among them."""
    curve = coder["training"]["curve"]
    every = max(1, len(curve) // POINTS)
    points = [*curve[:-1:every], curve[-1]]
    columns = ("step", "tokens", "FVU", "L0", "dead", "learning rate")
    rows = [
        (
            str(point["step"]),
            f"{point['tokens']:,}",
            number(point["fvu"]),
            f"{point['l0']:.1f}",
            number(point["dead_share"]),
            f"{point['learning_rate']:.2e}",
        )
        for point in points
    ]
    return f"{coder['label']}\n\n{table(columns, rows, right=columns)}"
