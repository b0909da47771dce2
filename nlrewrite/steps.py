"""The table of steps, and the two acts on it: name an artifact, build an artifact.

In: a kind, its spec and the artifacts it is made from. Out: a name (without doing anything) or a committed artifact.
Invariant: a name depends on kind, VERSION, spec and input names alone. A VERSION is raised by hand when results change;
a golden test over the sources asks for it, so that an edited comment never throws away a week of simulation.
"""

import fnmatch
import hashlib
import importlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nlrewrite import specs
from nlrewrite.artifacts import Artifact, Finding, Folder, Manifest, Provenance, Store, Work, digest
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress


@dataclass(frozen=True)
class Step:
    """One kind of artifact and the function that makes it: `function(spec, inputs, out, running)`."""

    kind: str
    version: int
    function: str
    sources: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    splits: tuple[tuple[str, str], ...] = ()
    """Inputs, as patterns of their labels, that must come from one split: what is fitted where is asserted."""
    together: str = ""
    """Makes several artifacts of the same inputs in one pass: `together([job, ...], inputs, running)`."""


@dataclass(frozen=True)
class Running:
    """What a step may know about where it runs."""

    execution: Execution
    progress: Progress
    work: Work | None = None
    """Where what is done so far may be kept, for who goes on after a kill; None: nothing is kept."""


@dataclass(frozen=True)
class Job:
    """One of several artifacts that one pass makes."""

    spec: specs.Spec
    out: Path
    work: Work | None = None


def _table(*steps: Step) -> dict[str, Step]:
    return {step.kind: step for step in steps}


_PROBED = ("subject", "tokens", "coder", "explain", "calibrate", "report")
_PROBED_SPLITS = (("explain", "explain"), ("calibrate", "calibrate"), ("report", "report"))

_WORDS = tuple(f"nlrewrite.language.{each}" for each in ("context", "encoding", "prompts", "template"))
_ENGINES = tuple(
    f"nlrewrite.llm.{each}"
    for each in (
        *("engine", "opening", "loading", "reference", "packed", "anatomy", "attention", "decoding", "head", "labels"),
        *(
            "linear",
            "packing",
            "rates",
            "shape",
            "vllm",
            "vllm_folder",
            "vllm_process",
            "server",
            "key",
            "patience",
            "probe",
        ),
        *("purse", "requests", "wire"),
    )
)

_CODERS = tuple(
    f"nlrewrite.coders.{each}"
    for each in (
        *("build", "code", "form", "ops", "kernels", "products", "initial", "choosing", "losses", "learned"),
        *("order", "activity", "optimizers", "curve", "saved", "train", "replaced", "finish", "record"),
        *("ranks", "followers", "sharded", "published", "files", "fitting"),
        *(
            f"formats.{each}"
            for each in (
                *("loaded", "tensors", "affine", "sparsify", "saelens", "gemma_scope"),
                *("pickled", "gpt2_transcoders", "dictionary_learning", "openai", "folding"),
            )
        ),
    )
)

STEPS = _table(
    Step("corpus", 1, "nlrewrite.text.corpus:build", ("nlrewrite.text.corpus", "nlrewrite.text.sources", "nlrewrite.text.documents", "nlrewrite.text.hub", "nlrewrite.text.duplicates")),
    Step("subject", 1, "nlrewrite.subject.build:build", ("nlrewrite.subject.build", "nlrewrite.subject.load", "nlrewrite.subject.sites", "nlrewrite.subject.tiny"), ("corpus",)),
    Step("tokens", 1, "nlrewrite.text.tokens:build", ("nlrewrite.text.tokens", "nlrewrite.text.tokenizer"), ("corpus", "subject")),
    Step("stream", 1, "nlrewrite.text.streams:build", ("nlrewrite.text.streams", "nlrewrite.text.hub", "nlrewrite.text.packing", "nlrewrite.text.rowfile", "nlrewrite.text.rows", "nlrewrite.text.sources", "nlrewrite.text.tokenizer"), ("subject",)),
    Step("coder", 2, "nlrewrite.coders.build:build", (*_CODERS, "nlrewrite.subject.sites"), (), (), "nlrewrite.coders.build:build_together"),
    Step("activations", 1, "nlrewrite.activations.collect:build", ("nlrewrite.activations.collect", "nlrewrite.activations.pairs", "nlrewrite.activations.statistics", "nlrewrite.subject.batches", "nlrewrite.subject.sites", "nlrewrite.text.positions"), ("subject", "tokens", "coder")),
    Step("explanations", 1, "nlrewrite.explain.rules:build", ("nlrewrite.explain.rules", "nlrewrite.explain.search", "nlrewrite.explain.evidence", "nlrewrite.language.sentence", "nlrewrite.language.reading", "nlrewrite.language.vocabulary"), ("subject", "tokens", "activations"), (("activations", "explain"),)),
    Step("gates", 1, "nlrewrite.explain.gate:build", ("nlrewrite.explain.gate", "nlrewrite.language.vocabulary"), ("subject", "tokens", "activations"), (("activations", "explain"),)),
    Step("simulation", 1, "nlrewrite.simulate.rules:build", ("nlrewrite.simulate.rules", "nlrewrite.language.sentence", "nlrewrite.language.reading", "nlrewrite.language.vocabulary"), ("subject", "tokens", "explanations")),
    Step("gating", 1, "nlrewrite.simulate.gating:build", ("nlrewrite.simulate.gating", "nlrewrite.simulate.rules", "nlrewrite.explain.gate"), ("tokens", "gates", "simulation")),
    Step("reader", 1, "nlrewrite.llm.reader:build", ("nlrewrite.llm.reader", "nlrewrite.llm.judging", "nlrewrite.llm.lessons", "nlrewrite.llm.rare", "nlrewrite.llm.rows", "nlrewrite.llm.spelling", "nlrewrite.llm.training", *_WORDS)),
    Step("sentences", 1, "nlrewrite.explain.sentences:build", ("nlrewrite.explain.sentences", "nlrewrite.explain.asking", "nlrewrite.explain.contrast", "nlrewrite.explain.examples", "nlrewrite.explain.refine", "nlrewrite.language.replies", "nlrewrite.simulate.ask", "nlrewrite.simulate.expectation", *_WORDS, *_ENGINES), ("subject", "tokens", "activations", "coder", "writer"), (("activations", "explain"),)),
    Step("quiz", 1, "nlrewrite.score.quiz:build", ("nlrewrite.score.quiz", "nlrewrite.score.embedding", "nlrewrite.score.measures", "nlrewrite.score.quizzes", "nlrewrite.score.scorers", "nlrewrite.score.tally", "nlrewrite.explain.examples", "nlrewrite.language.replies", *_WORDS, *_ENGINES), ("subject", "tokens", "activations", "explanations", "reader"), (("activations", "calibrate"),)),
    Step("answers", 1, "nlrewrite.simulate.inquiry:build", ("nlrewrite.simulate.inquiry", "nlrewrite.simulate.answers", "nlrewrite.simulate.ask", "nlrewrite.simulate.cascade", "nlrewrite.simulate.drawing", "nlrewrite.simulate.expectation", "nlrewrite.simulate.screen", "nlrewrite.simulate.sparing", "nlrewrite.activations.codes", *_WORDS, *_ENGINES)),
    Step("tuned", 1, "nlrewrite.llm.tuned:build", ("nlrewrite.llm.tuned", "nlrewrite.llm.tuning", "nlrewrite.llm.judging", "nlrewrite.llm.loading", "nlrewrite.llm.lora", "nlrewrite.llm.opening", "nlrewrite.llm.rare", "nlrewrite.llm.reader", "nlrewrite.llm.rows", "nlrewrite.activations.pairs", *_WORDS), ("subject", "tokens", "explanations", "activations", "reader"), (("activations", "explain"),)),
    Step("scores", 2, "nlrewrite.score.build:build", ("nlrewrite.score.build", "nlrewrite.score.measures", "nlrewrite.calibrate.cells", "nlrewrite.activations.codes"), ("tokens", "activations", "simulation"), (("activations", "calibrate"), ("simulation", "calibrate"))),
    Step("calibration", 2, "nlrewrite.calibrate.fit:build", ("nlrewrite.calibrate.fit", "nlrewrite.calibrate.apply", "nlrewrite.calibrate.cases", "nlrewrite.calibrate.cells", "nlrewrite.calibrate.digit_values", "nlrewrite.calibrate.evidence", "nlrewrite.calibrate.fitted", "nlrewrite.calibrate.gain", "nlrewrite.calibrate.hurdle", "nlrewrite.calibrate.isotonic", "nlrewrite.calibrate.knots", "nlrewrite.calibrate.known", "nlrewrite.calibrate.levels", "nlrewrite.calibrate.logistic", "nlrewrite.calibrate.lookup", "nlrewrite.calibrate.methods", "nlrewrite.calibrate.names", "nlrewrite.calibrate.pairing", "nlrewrite.calibrate.quantile", "nlrewrite.calibrate.refit", "nlrewrite.calibrate.stored", "nlrewrite.activations.codes", "nlrewrite.simulate.answers", "nlrewrite.simulate.heard", "nlrewrite.simulate.said"), ("tokens", "activations", "explain", "coder", "simulation"), (("activations", "calibrate"), ("explain", "explain"), ("simulation", "calibrate"))),
    Step("evaluation", 2, "nlrewrite.evaluate.build:build", ("nlrewrite.evaluate.build", "nlrewrite.evaluate.arms", "nlrewrite.evaluate.bands", "nlrewrite.evaluate.bootstrap", "nlrewrite.evaluate.curves", "nlrewrite.evaluate.controls", "nlrewrite.evaluate.equivalent", "nlrewrite.evaluate.gather", "nlrewrite.evaluate.latents", "nlrewrite.evaluate.losses", "nlrewrite.evaluate.mixing", "nlrewrite.evaluate.paired", "nlrewrite.evaluate.power", "nlrewrite.evaluate.rows", "nlrewrite.evaluate.selection", "nlrewrite.evaluate.summarise", "nlrewrite.evaluate.tally", "nlrewrite.activations.codes", "nlrewrite.protocols", "nlrewrite.subject.checkpoints", "nlrewrite.simulate.oracle", "nlrewrite.score.diagnostics", "nlrewrite.score.measures", "nlrewrite.subject.sites"), (), (("explain", "explain"), ("calibrate", "calibrate"), ("report", "report"), ("simulation*", "report"), ("on-calibrate*", "calibrate"))),
    Step("ladder", 1, "nlrewrite.probes.ladder:build", ("nlrewrite.probes.ladder", "nlrewrite.probes.panel", "nlrewrite.probes.upstream", "nlrewrite.probes.predictions", "nlrewrite.activations.codes", "nlrewrite.calibrate.cases", "nlrewrite.probes.heard", "nlrewrite.simulate.oracle"), (), (*_PROBED_SPLITS, ("on-calibrate*", "calibrate"), ("simulation*", "report"))),
    Step("requirement", 1, "nlrewrite.probes.requirement:build", ("nlrewrite.probes.requirement", "nlrewrite.probes.panel", "nlrewrite.probes.upstream", "nlrewrite.probes.predictions", "nlrewrite.calibrate.cases", "nlrewrite.probes.heard", "nlrewrite.probes.theory", "nlrewrite.simulate.oracle"), _PROBED, _PROBED_SPLITS),
    Step("sample-size", 1, "nlrewrite.probes.sample_size:build", ("nlrewrite.probes.sample_size", "nlrewrite.probes.panel", "nlrewrite.probes.upstream", "nlrewrite.probes.heard", "nlrewrite.simulate.oracle", "nlrewrite.calibrate.cases"), (*_PROBED, "on-calibrate", "simulation"), (*_PROBED_SPLITS, ("on-calibrate", "calibrate"), ("simulation", "report"))),
    Step("pilot", 1, "nlrewrite.probes.pilot:build", ("nlrewrite.probes.pilot", "nlrewrite.probes.pilot_asking", "nlrewrite.probes.pilot_errors", "nlrewrite.probes.pilot_gain", "nlrewrite.probes.pilot_loss", "nlrewrite.probes.pilot_pairs", "nlrewrite.probes.upstream", "nlrewrite.simulate.ask", "nlrewrite.simulate.drawing", "nlrewrite.calibrate.cases"), (), (("explain", "explain"), ("calibrate", "calibrate"))),
    Step("frontier", 1, "nlrewrite.evaluate.frontier:build", ("nlrewrite.evaluate.frontier", "nlrewrite.evaluate.patching", "nlrewrite.evaluate.bootstrap", "nlrewrite.coders.form", "nlrewrite.subject.batches", "nlrewrite.subject.sites")),
    Step("replacement", 1, "nlrewrite.evaluate.replacement:build", ("nlrewrite.evaluate.replacement", "nlrewrite.evaluate.frontier", "nlrewrite.evaluate.patching", "nlrewrite.evaluate.bootstrap", "nlrewrite.coders.form", "nlrewrite.subject.batches", "nlrewrite.subject.sites")),
    Step("report", 4, "nlrewrite.report.build:build", ("nlrewrite.report.build", "nlrewrite.report.asked", "nlrewrite.report.curves", "nlrewrite.report.facts", "nlrewrite.report.figure", "nlrewrite.report.wording", "nlrewrite.report.method", "nlrewrite.report.latents", "nlrewrite.report.drawing", "nlrewrite.report.figures", "nlrewrite.report.markup", "nlrewrite.report.papers", "nlrewrite.report.probes", "nlrewrite.report.reliability", "nlrewrite.report.style", "nlrewrite.report.tables", "nlrewrite.report.listing", "nlrewrite.report.page")),
    Step("coders-report", 1, "nlrewrite.report.coders:build", ("nlrewrite.report.coders", "nlrewrite.report.build", "nlrewrite.report.coder_facts", "nlrewrite.report.coder_figures", "nlrewrite.report.coder_page", "nlrewrite.report.coder_wording", "nlrewrite.report.drawing", "nlrewrite.report.facts", "nlrewrite.report.figure", "nlrewrite.report.layer_figures", "nlrewrite.report.markup", "nlrewrite.report.page", "nlrewrite.report.style", "nlrewrite.report.tables", "nlrewrite.report.wording")),
)  # fmt: skip


def name(kind: str, spec: specs.Spec, inputs: Mapping[str, Artifact]) -> Artifact:
    """What the artifact is called that `kind` makes of `spec` and `inputs`."""
    step = STEPS[kind]
    assert not step.inputs or set(inputs) == set(step.inputs), f"{kind} takes {step.inputs}, got {tuple(inputs)}"
    named = {label: str(artifact) for label, artifact in inputs.items()}
    return Artifact(kind=kind, digest=digest([kind, step.version, spec, named]))


def build(
    artifact: Artifact,
    spec: specs.Spec,
    inputs: Mapping[str, Artifact],
    store: Store,
    execution: Execution,
    progress: Progress,
    run: str,
    finding: Finding,
) -> Manifest:
    """Make `artifact` and commit it. `finding` is why; the manifest it names, which no longer holds, is replaced."""
    step = STEPS[artifact.kind]
    folders: dict[str, Folder] = {label: store.folder(each) for label, each in inputs.items()}
    for pattern, split in step.splits:
        matching = fnmatch.filter(folders, pattern)
        assert matching, f"{artifact.kind} must read {pattern} from the {split} split, and was given none"
        for label in matching:
            found = folders[label].manifest.spec["split"]
            assert found == split, (
                f"{artifact.kind} must read {label} from the {split} split, and was given the {found} split"
            )
    return _made(step, step.function, [Making(artifact, spec, finding)], folders, store, execution, progress, run)[0]


@dataclass(frozen=True)
class Making:
    """An artifact to be built, its spec, and why; the manifest that the finding names, if any, is replaced."""

    artifact: Artifact
    spec: specs.Spec
    finding: Finding


def joint(making: Sequence[Making]) -> bool:
    """Whether there are several, and one pass can make them all: of coders, those that are trained here."""
    trained = all(isinstance(each.spec, specs.CoderSpec) for each in making)
    return len(making) > 1 and bool(STEPS[making[0].artifact.kind].together) and trained


def build_together(
    making: Sequence[Making],
    inputs: Mapping[str, Artifact],
    store: Store,
    execution: Execution,
    progress: Progress,
    run: str,
) -> list[Manifest]:
    """Make several artifacts of one kind and the same inputs in one pass; each is what `build` would have made."""
    step = STEPS[making[0].artifact.kind]
    assert all(each.artifact.kind == step.kind for each in making), "one pass makes artifacts of one kind"
    assert step.together and not step.splits, f"{step.kind} makes one artifact at a time"
    folders = {label: store.folder(each) for label, each in inputs.items()}
    return _made(step, step.together, making, folders, store, execution, progress, run)


def _made(
    step: Step,
    function: str,
    making: Sequence[Making],
    folders: dict[str, Folder],
    store: Store,
    execution: Execution,
    progress: Progress,
    run: str,
) -> list[Manifest]:
    module, _, name = function.partition(":")
    started = time.perf_counter()
    works = [Work(store.place, each.artifact) for each in making]
    with ExitStack() as attempts:
        tries = [attempts.enter_context(store.attempt(each.artifact)) for each in making]
        _limit_threads(execution.threads)
        act = getattr(importlib.import_module(module), name)
        if function == step.together:
            triples = zip(making, tries, works, strict=True)
            jobs = [Job(each.spec, attempt.folder, work) for each, attempt, work in triples]
            act(jobs, folders, Running(execution, progress))
        else:
            act(making[0].spec, folders, tries[0].folder, Running(execution, progress, works[0]))
        seconds = (time.perf_counter() - started) / len(making)
        committed = [
            store.commit(
                attempt,
                version=step.version,
                spec=each.spec,
                inputs={label: folder.manifest for label, folder in folders.items()},
                made=provenance(step, execution, run, seconds),
                instead_of=each.finding.manifest,
            )
            for each, attempt in zip(making, tries, strict=True)
        ]
    for work in works:
        work.clear()
    return committed


def provenance(step: Step, execution: Execution, run: str, seconds: float) -> Provenance:
    commit, dirty = checkout()
    return Provenance(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seconds=round(seconds, 3),
        run=run,
        commit=commit,
        dirty=dirty,
        source=source_hash(step),
        packages=packages(),
        execution=execution.model_dump(include={"threads", "device", "batch_tokens"}),
    )


def source_hash(step: Step) -> str:
    """One hash over the step's own modules, as they are on disk: advice about drift, no part of a name."""
    total = hashlib.sha256()
    for module in step.sources:
        found = importlib.util.find_spec(module)
        assert found is not None and found.origin is not None, f"{step.kind} names a module that is not there: {module}"
        total.update(Path(found.origin).read_bytes())
    return total.hexdigest()[:16]


@cache
def packages() -> dict[str, str]:
    names = ("nlrewrite", "torch", "transformers", "tokenizers", "numpy", "scipy", "pyarrow", "pandas", "fsspec")
    installed = {}
    for package in names:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **installed}


@cache
def checkout() -> tuple[str, bool]:
    """The commit this code was checked out at and whether it was edited since; empty outside a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return "", False
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        command = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"]
        return commit, bool(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "", False


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
