"""Numbers and results in words: the headline, what it stands beside, the names of arms.

In: `results.json`'s headline and rows, and `Facts`. Out: strings. Invariant: a number is never told without what it is
compared with, and a share that could not be given is said to be missing, with the reason.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nlrewrite.report.facts import CODERS, Facts, coder_kind

MISSING = "–"
TINY = 10_000_000
CONTEXT_MATTERS = 0.6  # where token lookup closes more of what the oracle does, sentences need no context

ARMS: dict[str, tuple[str, str]] = {
    "original": ("Original model", "nothing is patched"),
    "coder": ("Coder", "the true activations of all latents"),
    "no_skip": ("Coder without skip", "true latents, the skip term at its mean"),
    "mean": ("Latents at their mean", "mean ablation: 0% by definition"),
    "mean_firing": ("Latents at their firing mean", "the mean over the tokens on which each is active, everywhere"),
    "zero": ("Latents at zero", "zero ablation"),
    "mlp_mean": ("Site at its mean", "the whole output of the module replaced"),
    "mlp_zero": ("Site at zero", "the whole output of the module replaced"),
    "token_lookup": ("Token lookup", "mean activation given the current token"),
    "bigram_lookup": ("Bigram lookup", "given the last two tokens, backing off to one"),
    "oracle": ("Oracle mask", "true on and off, one magnitude for each latent"),
    "oracle_digits": ("Oracle digits", "true strengths, in ninths of each latent's largest"),
    "oracle_flags": ("Oracle flags", "true on and off with as many errors as the sentences make, each by itself"),
    "shuffled": ("Shuffled sentences", "every latent reads another one's sentence"),
    "rewritten": ("Rewritten", "only sentences and the text are read"),
}
RUNGS: dict[str, tuple[str, str]] = {
    "gate": ("Gate only", "the tokens a latent may be active on, and no sentence"),
    "gated": ("Gate and sentence", "the sentence is read on those tokens alone, by rules"),
    "by-rules": ("The same, read by rules", "a program that reads the rule language without fault"),
}
"""What else than sentences alone the rewritten arm may read, by the name of its explanation."""
GROUPS: dict[str, tuple[str, ...]] = {
    "Ends of the scale": ("original", "coder", "no_skip", "mean", "mean_firing", "zero", "mlp_mean", "mlp_zero"),
    "Controls": ("shuffled", "token_lookup", "bigram_lookup", "oracle_flags", "oracle", "oracle_digits"),
    "Behind lexical gates": (),
    "Rewritten in sentences": ("rewritten",),
    "Others": (),
}
INFORMATION = {
    "nothing": "nothing of the simulator: only each latent's mean",
    "maximum": "each latent's largest activation",
    "marginals": "each latent's distribution on other documents",
    "paired": "pairs of prediction and activation on other documents",
    "outputs": "pairs, and what all latents together write, on other documents",
    "test marginals": "each latent's distribution on the very documents of the test (optimistic)",
    "tokens and activations": "tokens and true activations on other documents",
    "test activity": "when each latent is truly active in the test",
}


CALIBRATORS = {
    "none": "the expected digit, in ninths of the latent's largest activation",
    "published": "the expected digit with the published program's two slips: a failure is the maximum, a 9 counts as 0",
    "mean": "each latent's mean, whatever is said",
    "token-mean": "mean activation given the current token",
    "bigram-mean": "mean activation given the last two tokens",
    "prior-shift": "the chance that the reader states, moved to the latent's base rate, times its mean magnitude",
    "platt": "a logistic chance of being active, times the latent's mean magnitude",
    "beta": "a chance of being active with a curve for very high and very low answers, times the mean magnitude",
    "isotonic": "the rising step function that fits best",
    "isotonic-shrunk": "the rising step function that fits best, drawn towards the mean as other documents advise",
    "hurdle": "a logistic chance of being active, times the magnitude expected at that answer; slopes partly shared",
    "hurdle-none": "as hurdle, with nothing shared between latents",
    "hurdle-full": "as hurdle, with one slope for all latents",
    "digit-values": "a value for each of the ten digits, weighted by their probabilities",
    "levels": "rates and magnitudes by level, drawn towards what latents share",
}
READS = {
    "expected": "reads the expected digit",
    "log-odds": "reads the log-odds that the digit is not 0",
    "centred": "less the mean over latents of each context",
    "expected-centred": "reads the expected digit, less the mean over latents of each context",
    "log-odds-centred": "reads the log-odds that the digit is not 0, less the mean over latents of each context",
}
AFTERWARDS = {
    "gain": "each latent goes only the share of the way from its mean that proves right",
    "output-gain": "all latents go one share of the way from their means, by what they write together",
    "refit": "retuned: the decoder is fitted anew to the predictions",
}


def calibrator(name: str) -> str:
    """A calibrator's name in words; one unknown here has none."""
    plain, *after = name.split("+")
    base, _, reads = plain.partition("@")
    target = {"tenth": ", a tenth of them", "on-prompt": ", those of the very prompts"}
    quantile, _, of = base.removeprefix("quantile-").partition("-")
    said = CALIBRATORS.get(base, "")
    if base.startswith("quantile-"):
        said = f"carries predictions onto the distribution of true activations{target.get(of, '')}; type {quantile}"
    parts = [said, READS.get(reads, ""), *(AFTERWARDS.get(each, "") for each in after)]
    return "; ".join(part for part in parts if part)


def percent(value: float | None) -> str:
    """0.723 as 72%; below one percent with a decimal."""
    return MISSING if value is None else f"{_points(value)}%"


def percent_interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{_points(low)}, {_points(high)}]"


def number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return MISSING
    written = f"{value:.{digits}f}"
    return written.replace("-", "" if float(written) == 0 else "−")


def figures(value: float | None) -> str:
    """A number of any size, with three or four figures that count."""
    return MISSING if value is None else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def count(value: int) -> str:
    return f"{value:,}"


def many(value: int, one: str, more: str = "") -> str:
    return f"{value:,} {one if value == 1 else more or one + 's'}"


def _points(value: float) -> str:
    points = 100 * value
    written = f"{points:.1f}" if 0.05 <= abs(points) < 0.95 else f"{points:.0f}"
    return "0" if written in ("-0", "-0.0", "0.0") else written.replace("-", "−")


# -- the headline -----------------------------------------------------------------------------------------------------


def title(facts: Facts) -> str:
    return f"{facts.place[0].upper()}{facts.place[1:]}, in {many(facts.sentences, 'sentence')}"


def result(facts: Facts, headline: Mapping[str, Any]) -> str:
    """What the rewriting closes, in one sentence."""
    of = f" of a {facts.layers}-layer model" if facts.layers else ""
    where = "at every token" if headline["position"] == "all" else "at the last token"
    start = f"The latents of {facts.place}{of} were rewritten in {many(facts.sentences, 'English sentence')}."
    if headline["gap_closed"] is None:
        return (
            f"{start} How much of the gap they close cannot be said: on this text, setting every latent to its mean "
            f"does not measurably hurt more than the coder itself."
        )
    return (
        f"{start} Read {where} in place of the coder's encoder, they close {percent(headline['gap_closed'])} "
        f"{percent_interval(headline['low'], headline['high'])} of the gap in next-token loss between every latent "
        f"at its mean and the real coder."
    )


def beside(headline: Mapping[str, Any]) -> str:
    """The controls in one sentence, and on which side of them the sentences fall."""
    if headline["gap_closed"] is None:
        return "The losses themselves stand in the table of arms."
    said = (
        f"Looking up the last token closes {percent(headline['token_lookup'])}, the last two tokens "
        f"{percent(headline['bigram_lookup'])}, sentences dealt to the wrong latents {percent(headline['shuffled'])}, "
        f"a perfect on/off mask {percent(headline['oracle'])}."
    )
    compared = [
        _compared(headline.get(f"over_{arm}"), f"the table of {name}")
        for arm, name in (("token_lookup", "single tokens"), ("bigram_lookup", "token pairs"))
    ]
    known = [part for part in compared if part]
    return f"{said} The sentences are {' and '.join(known)}." if known else said


def _compared(over: Mapping[str, float] | None, what: str) -> str:
    if over is None:
        return ""
    size = f"{_points(abs(over['mean']))} points"
    if over["low"] > 0:
        return f"{size} [{_points(over['low'])}, {_points(over['high'])}] above {what}"
    if over["high"] < 0:
        return f"{size} [{_points(-over['high'])}, {_points(-over['low'])}] below {what}"
    return f"not told apart from {what} ({_points(over['low'])} to {_points(over['high'])} points)"


def carried(headline: Mapping[str, Any], facts: Facts) -> str:
    """How much of the site the latents stand for, and so how much the sentences do."""
    share = headline["coder_share"]
    if share is None:
        return "What share of the site's effect runs through the latents could not be told on this text."
    if headline["gap_closed"] is None:
        return (
            f"The latents carry about {percent(share)} of what the site does to the loss, measured against its output "
            f"at its mean. On this text that cannot be told from nothing, so there is no gap to close."
        )
    skips = coder_kind(facts.coder, facts.coder_record) == CODERS["skip-transcoder"]
    rest = "the skip term, the bias and the mean" if skips else "the bias and the mean"
    return (
        f"The latents carry {percent(share)} of what the site does to the loss, measured against its output at its "
        f"mean. The rest is {rest} of the latents, which are kept as they are, and what the coder itself gets wrong. "
        f"Of the site's whole effect, the sentences therefore account for {percent(share * headline['gap_closed'])}."
    )


def at_worst(headline: Mapping[str, Any]) -> str:
    """The highest that the rewriting's loss over mean ablation can be, wherever it was measured."""
    worst = headline.get("worst_over_mean")
    if not worst:
        return ""
    of = f"of all {worst['contrasts']} shares, choices and positions of latents measured, with 95% confidence"
    if worst["share"] < 0:
        return (
            f"Sentences beat mean ablation of the same latents in each {of}: the least gain is "
            f"{percent(-worst['share'])} of the whole gap."
        )
    return (
        f"At the worst {of}, sentences cost at most {percent(worst['share'])} of the whole gap more than mean "
        f"ablation of the same latents."
    )


def as_training(shares: Sequence[Mapping[str, Any]]) -> str:
    """The loss told as training: how far the subject itself had come when it was as good."""
    known = {str(each["arm"]): each for each in shares}
    if "rewritten" not in known:
        return ""
    beside = [
        f"{name} {_share_of_training(known[arm])}"
        for arm, name in (
            ("coder", "the coder"),
            ("mean", "every latent at its mean"),
            ("mlp_mean", "the site at its mean"),
        )
        if arm in known
    ]
    last = str(next(iter(known["rewritten"].get("checkpoints", [])[-1:]), {}).get("revision", ""))
    steps = f"the steps of its checkpoint {last}" if last else "its training steps"
    return (
        f"As good as the rewritten model, the subject itself was after {_share_of_training(known['rewritten'])} "
        f"of {steps}" + (f" ({', '.join(beside)})." if beside else ".")
    )


def _share_of_training(share: Mapping[str, Any]) -> str:
    bound = {"above": "100% or more", "below": "less than the first checkpoint's"}.get(str(share["censored"]))
    return bound or f"{percent(share['share'])} {percent_interval(share['low'], share['high'])}"


def language(facts: Facts) -> str:
    """How to read the sentences."""
    if not facts.explain.get("max_quotes"):
        return ""
    return (
        "In the sentences, a number in brackets is the strength, of 9, of a token, or what a condition adds to it; a "
        "level below 1 is silence. “Right after” means the token before, and a quoted blank is part of the token."
    )


def _elsewhere(facts: Facts) -> str:
    known = facts.coder.get("kind", "trained") == "trained"
    return "" if known else "; the coder, which comes from elsewhere, may have been trained on them"


UNEXPLAINED = {
    "mean": "set to their mean",
    "true": "kept as they truly are",
    "zero": "set to zero",
    "largest": "set to their largest activation",
}


def caveats(facts: Facts, headline: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """What a careful reader would ask."""
    said = []
    parameters = (facts.training or {}).get("parameters")
    if parameters is not None and parameters < TINY:
        assert facts.training is not None
        said.append(
            f"The model is tiny: {count(parameters)} parameters trained here, with a held-out loss of "
            f"{number(facts.training['held_out_loss'], 2)} nats where counting tokens alone gives "
            f"{number(facts.training['unigram_entropy'], 2)}. Nothing here says how the result carries over to large "
            f"ones."
        )
    said.append(
        f"The loss is measured on {count(row['n_contexts'])} tokens of {count(row['n_documents'])} documents "
        f"({count(row['n_groups'])} groups of near-duplicates). This run trained, explained, calibrated and chose "
        f"nothing on them{_elsewhere(facts)}. Intervals are 95%, by bootstrap over those groups, with the same "
        f"documents in every arm."
    )
    token, oracle = headline["token_lookup"], headline["oracle"]
    if headline["gap_closed"] is not None and oracle > 0 and token > CONTEXT_MATTERS * oracle:
        said.append(
            f"At this site the current token alone says most of what there is to say: its table closes "
            f"{percent(token / oracle)} of what the on/off mask does. A high share of the gap proves little here."
        )
    if headline.get("simulator") == "reader":
        wrote = "a language model" if headline["explanation"] == "sentences" else "a program, in one controlled English"
        said.append(
            f"Sentences are written by {wrote}, and read by a language model, which sees the sentence and the text, "
            f"nothing else."
        )
        if facts.simulate.get("gate"):
            said.append(
                "It is asked only where a latent's lexical gate is open, and elsewhere its digit is 0. Gates are "
                "learned from activations on the explain split, not read from sentences; shuffled sentences stand "
                "behind them too, and the arm of gates alone is in the table where there is one."
            )
    else:
        said.append(
            "Sentences are written and read by a program that knows one controlled English, not by a language model. "
            "The reader sees the sentence and the text, nothing else."
        )
    how = INFORMATION.get(str(headline["information"]), str(headline["information"]))
    chosen = str(headline["chosen_on"])
    by = "is the protocol's own" if chosen == "protocol" else f"was chosen on the {chosen} split"
    said.append(
        f"The reader's digits become activations through the calibrator “{headline['calibrator']}”, which knows {how} "
        f"and {by}. The table shows what the other calibrators give."
    )
    missing = facts.latents - facts.sentences
    if missing:
        given = UNEXPLAINED[str(facts.evaluate.get("unexplained", "mean"))]
        said.append(
            f"{many(missing, 'latent')} of {count(facts.latents)} have no readable sentence. They are {given} in the "
            f"rewritten arm, and count as not explained."
        )
    return said


# -- rows -------------------------------------------------------------------------------------------------------------


def arm_name(row: Mapping[str, Any]) -> tuple[str, str]:
    """A row's arm and what it is, in words; an arm unknown here keeps its own name."""
    name, explanation = str(row["arm"]), str(row.get("explanation", ""))
    topk = str(row.get("topk", "none"))
    shown, about = ARMS.get(name, (name.replace("_", " "), ""))
    if name == "rewritten" and explanation in RUNGS:
        shown, about = RUNGS[explanation]
    elif name == "rewritten":
        limit = explanation.rpartition("-")
        if limit[2].isdigit() and limit[0]:
            about = f"sentences of at most {limit[2]} quotes"
        elif row.get("simulator") == "reader":
            about = "sentences and the text are read, by a language model"
    told = about
    if topk == "mixed":
        about = "only the k largest of predicted and true values are kept, as published"
        if row.get("eviction_rate"):
            about += f": {percent(row['eviction_rate'])} of the true ones of other latents lose their place"
    elif topk != "none":
        about = f"only the top k by {topk} are kept"
    if name != "rewritten" and about != told:
        about = f"{told}; {about}"
    if row.get("selection") == "harmless":
        about = f"sentences for the {count(row.get('n_latents', 0))} latents sure to gain by them, means for the others"
    return shown, about


def group_of(row: Mapping[str, Any]) -> str:
    if row["arm"] == "rewritten" and row.get("explanation") in ("gate", "gated"):
        return "Behind lexical gates"
    return next((group for group, names in GROUPS.items() if row["arm"] in names), "Others")
