"""What commands print when they are done: a run, a plan, a budget, a pilot.

In: an outcome, a plan, the content of results.json. Out: text for standard output and for the Prefect UI. Invariant:
every measured figure stands with its interval and its controls; what is printed is in the files as well.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nlrewrite.coders import telling
from nlrewrite.terminal import Output, interval, number, size, table

if TYPE_CHECKING:
    from nlrewrite.costs import Cost
    from nlrewrite.pipeline import Outcome, StepRow
    from nlrewrite.planning import Plan
    from nlrewrite.spending import Spent


def steps_table(rows: Sequence["StepRow"]) -> str:
    """What became of every step of a run."""
    return table(
        ("step", "artifact", "state", "seconds", "size", "drift"),
        [
            (
                row.step,
                str(row.artifact),
                row.state,
                f"{row.seconds:.1f}",
                size(row.bytes),
                "sources edited since" if row.drift else "",
            )
            for row in rows
        ],
        right=("seconds", "size"),
    )


def results_markdown(results: Mapping[str, Any]) -> str:
    """The headline in words, and the arms with all latents replaced."""
    return f"{headline(results)}\n\n{results_table(results)}"


def results_table(results: Mapping[str, Any]) -> str:
    """The arms with all latents replaced, and those that replace none, at the headline's positions."""
    there = [arm for arm in results["arms"] if arm["position"] == results["headline"]["position"]]
    partial = {arm["arm"] for arm in there if arm["fraction"]}
    arms = [arm for arm in there if arm["fraction"] == 1 or arm["arm"] not in partial]
    varied = [name for name in ("explanation", "topk") if len({arm[name] for arm in arms if arm[name]}) > 1]
    keys = ("arm", *varied, "calibrator", "information")
    figures = ("ce", "delta_ce [low, high]", "kl", "gap_closed [low, high]")
    rows: dict[tuple[str, ...], tuple[str, ...]] = {}
    for arm in arms:  # with all latents chosen, every way to choose them is the same: the first stands for all
        values = (number(arm["ce"]), interval(arm, "delta_ce"), number(arm["kl"]), interval(arm, "gap_closed"))
        rows.setdefault(tuple(str(arm[key] or "") for key in keys), values)
    return table((*keys, *figures), [(*key, *values) for key, values in rows.items()], right=figures)


def headline(results: Mapping[str, Any]) -> str:
    """What the rewriting achieves, in one sentence with interval, controls, and whose protocol it follows."""
    head, protocol = results["headline"], (results.get("protocol") or {}).get("name", "ours")
    by = "" if protocol == "ours" else f"By protocol {protocol}, whose known defects the report names. "
    if head["gap_closed"] is None:
        return (
            f"{by}The coder is not measurably better than its latents at their mean, so there is no gap to close: "
            "see delta_ce and kl. Train the coder longer or take another, or choose another layer with --set "
            "coder.site.layer."
        )
    controls = {
        "token lookup": head["token_lookup"],
        "bigram lookup": head["bigram_lookup"],
        "shuffled sentences": head["shuffled"],
        "oracle mask": head["oracle"],
    }
    over = head["over_token_lookup"]
    where = "all positions" if head["position"] == "all" else "the last position"
    on = head["chosen_on"]
    return (
        f"{by}Rewritten in sentences, all latents at {where}, the layer closes {number(head['gap_closed'])} "
        f"[{number(head['low'])}, {number(head['high'])}] of the gap between its latents at their mean and the coder"
        f" ({', '.join(f'{name} {number(value)}' for name, value in controls.items() if value is not None)})"
        + (
            f"; over token lookup {number(over['mean'])} [{number(over['low'])}, {number(over['high'])}]"
            if over
            else ""
        )
        + ("; calibrator as the protocol has it." if on == "protocol" else f"; calibrator chosen on {on}.")
    )


def plan_text(plan: "Plan") -> str:
    """The plan's rows, and the work in numbers."""
    from nlrewrite.profiles import chosen

    rows = [
        (row.step, str(row.artifact), row.state, row.why + (" (sources edited since)" if row.drift else ""))
        for row in plan.rows
    ]
    to_build = sum(row.state != "hit" for row in plan.rows)
    bound = "at most " if plan.at_most else ""
    by_model = plan.questions is not None and chosen(plan.profile).published is None
    simulator = "the rule reader" if by_model else "the simulator"
    if plan.queries is None or plan.queries_left is None:
        queries = f"queries to {simulator}: known once the tokens step is built"
    else:
        queries = f"queries to {simulator}: {bound}{plan.queries:,}, of which {plan.queries_left:,} are to be asked"
    tokens = "; ".join(
        f"{name} {bound if name in ('explain', 'calibrate', 'report') else ''}{count:,}"
        for name, count in plan.tokens.items()
    )
    lines = [
        table(("step", "artifact", "state", "why"), rows),
        "",
        f"{to_build} of {len(plan.rows)} steps to build",
        queries,
        f"tokens: {tokens}",
        *(["", costs_table(plan.costs)] if plan.costs else []),
        *([f"questions to a language model: {plan.assumed}"] if plan.assumed else []),
    ]
    return "\n".join(lines)


def costs_table(costs: Sequence["Cost"]) -> str:
    """What asking a language model takes, engine by engine; money only where a price was given."""
    devices = list(dict.fromkeys(device for cost in costs for device in cost.hours))
    priced = any(cost.money is not None for cost in costs)
    columns = ("asked", "engine", "way", "questions", "tokens", *(f"{device} hours" for device in devices))
    rows = [
        (
            cost.what,
            cost.engine,
            cost.way,
            f"{cost.queries:,}",
            "" if cost.tokens is None else amount(cost.tokens),
            *("" if device not in cost.hours else amount(cost.hours[device]) for device in devices),
            *(("" if cost.money is None else f"{cost.money:,.2f}",) if priced else ()),
            cost.basis,
        )
        for cost in costs
    ]
    numbers = columns[3:]
    return table((*columns, *(("money",) if priced else ()), "basis"), rows, right=(*numbers, "money"))


def amount(value: float) -> str:
    """A number for people: three digits, or with a unit where it is large."""
    for unit, one in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= one:
            return f"{value / one:.3g} {unit}"
    if 0 < value < 0.01:
        return "< 0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spent_text(spent: "Spent") -> str:
    """What a budget buys: the best ways to use it, and what they take for granted."""
    rows = [
        (
            f"{each.active} + {each.inactive}",
            f"{each.latents.count:,}",
            "yes" if each.gate else "no",
            f"{each.prompts:,}",
            f"{each.queries:,}",
            f"± {each.half_width:.3f}",
            f"{each.detectable:.3f}",
            f"{each.calibration_loss:.3f}",
            f"{each.latents_loss + each.gate_loss + each.screening_loss:.3f}",
            f"{each.error:.3f}",
        )
        for each in spent.offers[:6]
    ]
    numbers = ("latents", "prompts", "questions", "interval", "found at 80%", "lost to calibration", "lost to the rest")
    columns = ("cases of a latent", "latents", "gate", *numbers[1:], "error")
    lines = [
        f"for {spent.budget.words}, the best first:",
        table(columns, rows, right=(*numbers, "error")),
        *(f"assumed: {each}" for each in spent.terms.assumed),
        f"taken: {' '.join(f'--set {each}' for each in spent.offer.settings)}",
    ]
    return "\n".join(lines)


def pilot_text(result: Mapping[str, Any], whole: int | None) -> str:
    """What a pilot predicts, what it was predicted from, and what the whole run would take."""

    def told(name: str) -> str:
        each = result["prediction"][name]
        return f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]"

    if result["prediction"]["gap_closed"] is None:
        lines = ["gap closed: not predicted, for mean ablation adds no loss to speak of here"]
    else:
        lines = [
            f"gap closed, predicted: {told('gap_closed')} ({result['level']:.0%} interval)",
            f"added loss, predicted: {told('added_loss')} nats above the coder's",
        ]
    lines += [
        f"squared error taken away: {told('in_output')} by all latents together, {told('alone')} by each alone",
        f"asked: {result['queries']:,} questions, {result['latents']:,} of {result['of_latents']:,} latents",
    ]
    spent = result.get("asked")
    if spent is None:
        return "\n".join([*lines, "the rule reader was asked, which costs nothing"])
    rate = spent["queries"] / spent["seconds"] if spent["seconds"] > 0 else None
    lines.append(f"by {spent['engine']}: {spent['seconds']:,.1f} s" + (f", {rate:,.1f} a second" if rate else ""))
    each = spent.get("seconds_each", {})
    if len(each) > 1:
        lines.append(f"fastest here: {', '.join(f'{name} {1 / cost:,.1f} a second' for name, cost in each.items())}")
    if whole is not None and rate:
        hours = whole / rate / 3600
        lines.append(f"the whole run: {whole:,} questions, {amount(hours)} hours at this rate")
    return "\n".join(lines)


def finished(outcome: "Outcome", output: Output) -> str:
    """What is printed at the end of a run."""
    of_coders = telling.is_of_coders(outcome.results)
    if output.json:
        told = {
            "results": str(outcome.results_path),
            "report": str(outcome.report_path),
            "headline": telling.headline(outcome.results) if of_coders else outcome.results["headline"],
            "steps": outcome.results["steps"],
        }
        return json.dumps(told, indent=1, ensure_ascii=False)
    paths = f"results: {outcome.results_path}\nreport:  {outcome.report_path}"
    said = telling.headline(outcome.results) if of_coders else headline(outcome.results)
    if output.quiet:
        return f"{said}\n{paths}"
    if of_coders:
        shown = [found for name, found in telling.tables(outcome.results).items() if name != "curves"]
        return "\n\n".join([steps_table(outcome.rows), *shown, said, paths])
    from nlrewrite.probes.telling import tables

    probed = [f"{name}:\n{found}" for name, found in tables(outcome.results).items()]
    measured = [results_table(outcome.results), *probed, said]
    return "\n\n".join([steps_table(outcome.rows), *measured, paths])
