"""What was done, in words: the coder, the sentences and who read them, how they were scored.

In: `Facts` of a run. Out: paragraphs. Invariant: what is said of a coder is what its file, its record or its spec says,
and a k is called one only where it is fixed.
"""

from collections.abc import Mapping
from typing import Any

from nlrewrite.report.facts import Facts, coder_kind
from nlrewrite.report.wording import count, percent


def method(facts: Facts, site: str) -> list[str]:
    """What was done, in three paragraphs."""
    coder, trained = facts.coder, facts.coder_training
    kind, record = coder_kind(coder, facts.coder_record), facts.coder_record
    reads = "reconstructs it" if facts.site["kind"] != "mlp" else "reads its input and predicts its output"
    return [
        f"At one hookpoint, {facts.place} ({site}), a {kind} with {count(coder['width'])} latents, {_active(facts)}, "
        f"{reads}; it leaves {percent(trained.get('fvu', record.get('fvu')))} of the variance "
        f"unexplained, and {percent(trained.get('live_share'))} of its latents are live. {_given(facts)} come from "
        f"the spec; nothing measured on this page chose them.{_from_elsewhere(record)}",
        "For every latent an explainer looks at where it is active on the explain split and writes a sentence. A "
        "simulator then reads that sentence and the text up to a token, and answers with a distribution over the "
        "digits 0 to 9: how active the latent should be there. A calibrator, fitted on the calibrate split, turns "
        "digits into activations. Those activations take the place of the coder's encoder; its decoder and the rest of "
        "the model stay as they are, and the loss on the report split says what was lost.",
        f"The simulator sees at most {facts.simulate['window']} tokens. A sentence holds at most {_limits(facts)}. "
        f"Detection asks in which "
        f"windows a latent is active at all, fuzzing whether a marked token is one of its own; both are F1 scores on "
        f"balanced draws, while MCC, AUPRC, sensitivity and specificity are counted at natural prevalence.",
    ]


def _active(facts: Facts) -> str:
    """How many latents are active on a token: k where that is fixed, else as many as were measured."""
    form, l0 = facts.coder_form, facts.coder_record.get("l0")
    mean = None if l0 is None else f"{l0:.1f}" if l0 < 100 else count(round(l0))
    if form.get("activation", facts.coder.get("activation", "topk")) == "topk":
        k = form.get("k") or facts.coder["k"]
        all_of_them = l0 is None or round(l0, 1) == k
        return (
            f"{k} of them active on a token" if all_of_them else f"at most {k} and on average {mean} active on a token"
        )
    return f"on average {mean} of them active on a token" if mean else "as many of them active as a token asks for"


def _given(facts: Facts) -> str:
    """The settings that decide what the coder is like, for its activation."""
    if facts.coder.get("kind", "trained") != "trained":
        return "Site and coder"
    aims = {"relu": "penalty", "jumprelu": "penalty"}.get(str(facts.coder.get("activation", "topk")), "k")
    return f"Site, width and {aims}"


def _from_elsewhere(record: Mapping[str, Any]) -> str:
    """Where a coder comes from that was not trained here, as its record says."""
    if record.get("source", "trained") == "trained":
        return ""
    of = f", trained on {record['data']}" if record.get("data") else ""
    return f" The coder comes from {record['source']}{of}, in the format of {record['format']}."


def _limits(facts: Facts) -> str:
    spec = facts.explain
    if "max_quotes" in spec:
        return f"{spec['max_words']} words and {spec['max_quotes']} quoted tokens"
    return f"{spec['most_words']} words"
