"""How one layer is rewritten, step by step: the table of contents of the whole program.

In: the spec of a rewriting and a `step` function. Out: the report's artifact. The same composition is run by whoever
gives it a `step`: one that only names artifacts (`plan`, `status`), one that builds them (`run --local`), one that
calls Prefect tasks (`flows/rewrite.py`). Coders alone are trained and measured at the end of this module. Invariant:
nothing is fitted on the split it is judged on, or on a later one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from nlrewrite.artifacts import Artifact
from nlrewrite.coding import Coders, at_layer
from nlrewrite.errors import SettingError
from nlrewrite.questions import TunedSpec
from nlrewrite.specs import (
    CoderSpec,
    GatingSpec,
    PilotedSpec,
    Probe,
    ReaderSpec,
    RewriteSpec,
    RuleReader,
    ServedReader,
    Spec,
    Split,
    SplitTokens,
    TinySubject,
    TrainedReader,
)

_KNOWN = ("subject", "tokens", "coder", "explain", "calibrate", "report")
_SAID = ("on-calibrate", "simulation")
PROBED: dict[Probe, tuple[str, ...]] = {
    "ladder": (*_KNOWN, *(f"{label}{rung}" for rung in ("", "-gate", "-gated") for label in _SAID)),
    "requirement": _KNOWN,
    "sample-size": (*_KNOWN, *_SAID),
}
"""What each probe reads, by the labels that the evaluation has for it; gates where they are measured at all."""


class StepRunner(Protocol):
    def __call__(self, label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        """The artifact that `kind` makes of `spec` and `inputs`; `label` tells steps of one kind apart."""
        ...


class Together(Protocol):
    def __call__(self, kind: str, wanted: Mapping[str, Spec], **inputs: Artifact) -> dict[str, Artifact]:
        """The artifacts that `kind` makes of each spec, by label; what is missing is made in one pass."""
        ...


class Simulate(Protocol):
    def __call__(self, label: str, explanations: Artifact, split: Split, shuffle: bool = False) -> Artifact: ...


@dataclass(frozen=True)
class Rewritten:
    """What a rewriting leaves behind."""

    evaluation: Artifact
    report: Artifact


def _gated(spec: RewriteSpec) -> bool:
    """Whether lexical gates are needed: as rungs of their own, or before a language model is asked."""
    asked = not isinstance(spec.reader, RuleReader)
    return (spec.rungs and isinstance(spec.writer, RuleReader)) or (asked and spec.ask.gate)


def _beginning(spec: RewriteSpec, step: StepRunner) -> tuple[Artifact, dict[str, Artifact], dict[str, Artifact]]:
    """The corpus; the subject and its tokens, which everything reads; and what a coder is learned from."""
    corpus = step("corpus", "corpus", spec.text)
    subject = step("subject", "subject", spec.subject, corpus=corpus)
    tokens = step("tokens", "tokens", spec.tokens, corpus=corpus, subject=subject)
    read = {"subject": subject, "tokens": tokens}
    if not isinstance(spec.coder, CoderSpec) or isinstance(spec.coder.data, SplitTokens):
        return corpus, read, read
    return corpus, read, read | {"stream": step("stream", "stream", spec.coder.data, subject=subject)}


def _own_coder(spec: RewriteSpec) -> Coders:
    return _there(spec, {"coder": at_layer(spec.coder, spec.coder.site.layer)}, "coder.site.layer")["coder"]


def _there(spec: RewriteSpec, coders: dict[str, Coders], setting: str) -> dict[str, Coders]:
    """The coders, if a subject that is trained here will have their layers; of others only their files know."""
    for coder in coders.values():
        if isinstance(spec.subject, TinySubject) and coder.site.layer >= spec.subject.layers:
            raise SettingError(
                f"the subject has layers 0 to {spec.subject.layers - 1}, and {setting} names {coder.site.layer}. "
                f"Change --set {setting}"
            )
    return coders


def rewrite(spec: RewriteSpec, step: StepRunner) -> Rewritten:
    corpus, read, learned_from = _beginning(spec, step)
    subject, tokens = read["subject"], read["tokens"]
    coder = step("coder", "coder", _own_coder(spec), **learned_from)
    active = {
        split: step(
            f"activations-{split}",
            "activations",
            spec.activations.model_copy(update={"split": split}),
            **read,
            coder=coder,
        )
        for split in ("explain", "calibrate", "report")
    }

    def model(label: str, of: ReaderSpec) -> Artifact:
        """A language model: trained here, or a reference to one."""
        known = read if isinstance(of, TrainedReader) else {}
        if isinstance(of, ServedReader) and not of.tokenizer:  # its prompts are cut by the subject's
            known = {"subject": subject}
        return step(label, "reader", of, **known)

    by_rules = isinstance(spec.writer, RuleReader)
    writer = None if by_rules else model("writer", spec.writer)

    def explain(label: str, most: int) -> Artifact:
        """Sentences of the rule explainer with so many quotes at most, or of a language model."""
        if writer is not None:
            known = {**read, "activations": active["explain"], "coder": coder}
            return step(label, "sentences", spec.write, **known, writer=writer)
        limited = spec.explain.model_copy(update={"max_quotes": most})
        return step(label, "explanations", limited, **read, activations=active["explain"])

    def spoken(label: str, explanations: Artifact, split: str, shuffle: bool = False) -> Artifact:
        simulation = spec.simulate.model_copy(update={"split": split, "shuffle": shuffle})
        return step(label, "simulation", simulation, **read, explanations=explanations)

    def calibrate(label: str, simulation: Artifact) -> Artifact:
        known = {"tokens": tokens, "activations": active["calibrate"], "explain": active["explain"], "coder": coder}
        return step(label, "calibration", spec.calibrate, **known, simulation=simulation)

    explanations = explain("explanations", spec.explain.max_quotes)
    reader = untaught = None if isinstance(spec.reader, RuleReader) else model("reader", spec.reader)
    if untaught is not None and spec.tune.steps:
        taught = TunedSpec(tune=spec.tune, prompt=spec.ask.prompt, order=spec.ask.order, window=spec.ask.window)
        known = {**read, "explanations": explanations, "activations": active["explain"]}
        reader = step("tuned", "tuned", taught, **known, reader=untaught)
    screener = None if isinstance(spec.screener, RuleReader) else model("screener", spec.screener)
    gates = step("gates", "gates", spec.gates, **read, activations=active["explain"]) if _gated(spec) else None

    def simulate(label: str, explanations: Artifact, split: Split, shuffle: bool = False) -> Artifact:
        """What the sentences say, by the rule reader everywhere, or by a language model where it is asked."""
        if reader is None:
            return spoken(label, explanations, split, shuffle)
        contexts = spec.ask.contexts if split == "calibrate" else "last"
        screen = spec.ask.screen if contexts == "last" else "none"  # drawn cases are few, and all of them count
        update = {"split": split, "shuffle": shuffle, "contexts": contexts, "screen": screen}
        asked = spec.ask.model_copy(update=update)
        more = {"activations": active[split]} if contexts == "cases" else {}
        more |= {"seen": active["explain"]} if screen != "none" else {}
        more |= {"screener": screener} if screen == "cascade" and screener is not None else {}
        more |= {"gates": gates} if asked.gate and gates is not None else {}
        more |= {"scores": scored} if asked.with_score and scored is not None else {}
        return step(label, "answers", asked, **read, explanations=explanations, reader=reader, **more)

    def rewritten(
        suffix: str, explanations: Artifact, shuffle: bool = False, simulate: Simulate = simulate
    ) -> dict[str, Artifact]:
        """Simulate the report split, with calibrators fitted on the calibrate split."""
        on_calibrate = simulate(f"simulation-calibrate{suffix}", explanations, "calibrate", shuffle)
        return {
            f"on-calibrate{suffix}": on_calibrate,
            f"calibration{suffix}": calibrate(f"calibration{suffix}", on_calibrate),
            f"simulation{suffix}": simulate(f"simulation-report{suffix}", explanations, "report", shuffle),
        }

    def behind(gates: Artifact, suffix: str, sentence: bool, simulated: dict[str, Artifact]) -> dict[str, Artifact]:
        """The same behind lexical gates, with or without what the sentences say inside them."""

        def gating(split: Split, simulation: Artifact) -> Artifact:
            gated = GatingSpec(split=split, sentence=sentence)
            return step(
                f"simulation-{split}{suffix}", "gating", gated, tokens=tokens, gates=gates, simulation=simulation
            )

        on_calibrate = gating("calibrate", simulated["on-calibrate"])
        return {
            f"on-calibrate{suffix}": on_calibrate,
            f"calibration{suffix}": calibrate(f"calibration{suffix}", on_calibrate),
            f"simulation{suffix}": gating("report", simulated["simulation"]),
        }

    def score(on_calibrate: Artifact) -> Artifact:
        known = {"tokens": tokens, "activations": active["calibrate"]}
        return step("scores", "scores", spec.score, **known, simulation=on_calibrate)

    controls: dict[str, Artifact] = {}
    scored: Artifact | None = None
    if writer is not None:
        known = {**read, "activations": active["calibrate"], "explanations": explanations}
        scored = step("scores", "quiz", spec.quiz, **known, reader=writer)
    elif reader is not None:  # the rule reader costs nothing, and shows what a perfect reader of rules would do
        controls |= rewritten("-by-rules", explanations, simulate=spoken)
        scored = score(controls["on-calibrate-by-rules"])
    simulated = rewritten("", explanations)
    scores = scored if scored is not None else score(simulated["on-calibrate"])
    controls |= rewritten("-shuffled", explanations, shuffle=True)
    for most in spec.lengths if by_rules else ():
        controls |= rewritten(f"-{most}", explain(f"explanations-{most}", most))
    if spec.rungs and by_rules:
        by = "-by-rules" if reader is not None else ""
        said = {label: (simulated | controls)[f"{label}{by}"] for label in ("on-calibrate", "simulation")}
        for suffix, sentence in (("-gate", False), ("-gated", True)):
            assert gates is not None
            controls |= behind(gates, suffix, sentence, said)

    evaluated = {
        **read,
        "coder": coder,
        **active,
        "explanations": explanations,
        "scores": scores,
        **simulated,
        **controls,
    }
    evaluation = step("evaluation", "evaluation", spec.evaluate, **evaluated)
    asked: dict[str, Spec] = {"ladder": spec.ladder, "requirement": spec.requirement, "sample-size": spec.sample_size}
    probed = {
        probe: step(
            probe, probe, asked[probe], **{label: evaluated[label] for label in PROBED[probe] if label in evaluated}
        )
        for probe in dict.fromkeys(spec.probes)
    }
    models = {name: each for name, each in (("reader", untaught), ("writer", writer)) if each is not None}
    if reader is not None and reader != untaught:
        models["tuned"] = reader
    report = step(
        "report", "report", spec.report, **evaluated, **models, corpus=corpus, evaluation=evaluation, **probed
    )
    return Rewritten(evaluation=evaluation, report=report)


def pilot(spec: RewriteSpec, step: StepRunner, name: StepRunner) -> Artifact:
    """The steps of a rewriting as far as a pilot needs them, and the pilot; `name` only names the others."""
    asked = not isinstance(spec.reader, RuleReader)
    needed = {"corpus", "subject", "tokens", "coder", "activations-explain", "activations-calibrate"}
    gated = asked and spec.ask.gate
    needed |= {"gates"} if gated else set()
    needed |= {"writer", "explanations", *(("reader", "tuned") if asked else ("simulation-calibrate",))}
    made: dict[str, Artifact] = {}

    def some(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        made[label] = (step if label in needed else name)(label, kind, spec, **inputs)
        return made[label]

    rewrite(spec, some)
    read = {label: made[label] for label in ("subject", "tokens", "coder", "explanations")}
    active = {"explain": made["activations-explain"], "calibrate": made["activations-calibrate"]}
    said = {"reader": made.get("tuned", made["reader"])} if asked else {"on-calibrate": made["simulation-calibrate"]}
    said |= {"gates": made["gates"]} if gated else {}
    return step(
        "pilot", "pilot", PilotedSpec(pilot=spec.pilot, ask=spec.ask if asked else None), **read, **active, **said
    )


# -- coders alone -----------------------------------------------------------------------------------------------------


def one_by_one(step: StepRunner) -> Together:
    """Several artifacts of one kind as so many steps, for who only names them."""

    def together(kind: str, wanted: Mapping[str, Spec], **inputs: Artifact) -> dict[str, Artifact]:
        return {label: step(label, kind, spec, **inputs) for label, spec in wanted.items()}

    return together


def train_coder(spec: RewriteSpec, step: StepRunner, together: Together) -> Artifact:
    """The coder, and a page about how it learned."""
    corpus, _, learned_from = _beginning(spec, step)
    coder = step("coder", "coder", _own_coder(spec), **learned_from)
    return step("report", "coders-report", Spec(), corpus=corpus, coder=coder)


def sweep(spec: RewriteSpec, step: StepRunner, together: Together) -> Artifact:
    """Coders that differ in one setting, what each costs in the subject's loss, and a page about both."""
    setting = "sweep.values" if spec.sweep.over == "layer" else "coder.site.layer"
    return _measured("frontier", _there(spec, spec.sweep.coders(spec.coder), setting), spec, step, together)


def replace(spec: RewriteSpec, step: StepRunner, together: Together) -> Artifact:
    """A coder for every layer named, what replacing them all at once costs, and a page about both."""
    wanted = _there(spec, spec.layers.coders(spec.coder), "layers.layers")
    return _measured("replacement", wanted, spec, step, together)


def _measured(
    kind: str, wanted: Mapping[str, Spec], spec: RewriteSpec, step: StepRunner, together: Together
) -> Artifact:
    corpus, read, learned_from = _beginning(spec, step)
    coders = together("coder", wanted, **learned_from)
    measured = step(kind, kind, spec.measure, **read, **coders)
    return step("report", "coders-report", Spec(), corpus=corpus, **coders, **{kind: measured})


Walk = Callable[[RewriteSpec, StepRunner, Together], Artifact]
WALKS: dict[str, Walk] = {
    "rewrite": lambda spec, step, together: rewrite(spec, step).report,
    "train-coder": train_coder,
    "sweep": sweep,
    "replace": replace,
}
"""What can be made from a spec, by the name of its flow; each ends in a report."""
