"""What identifies results, written down: sources and VERSION of every step, fields of every spec, names of some specs.

In tests/golden: `steps.json` is rewritten by `python -m tests.test_steps` (make bless-steps), `specs.json` by
`python -m tests.test_steps specs` and `names.json` by `python -m tests.test_steps names`. Each is a decision: read the
message of the test that fails before you bless.
"""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from nlrewrite import coding, profiles, questions, specs
from nlrewrite.artifacts import Artifact, canonical, digest
from nlrewrite.composition import WALKS, one_by_one, pilot, rewrite
from nlrewrite.seeds import derive, generator
from nlrewrite.steps import STEPS, Step, name, source_hash

GOLDEN = Path(__file__).parent / "golden"

# What every step stands on and no step names. Of these only seeds and digests move results: their values are pinned.
GROUND = {
    f"nlrewrite.{module}"
    for module in (
        "specs",
        "coding",
        "material",
        "questions",
        "execution",
        "errors",
        "progress",
        "seeds",
        "steps",
        "composition",
        "artifacts",
    )
}

SPEC_OF: dict[str, Any] = {
    "corpus": specs.TextSpec,
    "tokens": specs.TokensSpec,
    "subject": specs.SubjectSpec,
    "coder": specs.AnyCoderSpec,
    "activations": specs.ActivationsSpec,
    "explanations": specs.ExplainSpec,
    "gates": specs.GatesSpec,
    "simulation": specs.SimulateSpec,
    "gating": specs.GatingSpec,
    "scores": specs.ScoreSpec,
    "calibration": specs.CalibrateSpec,
    "evaluation": specs.EvaluateSpec,
    "report": specs.ReportSpec,
    "ladder": specs.LadderSpec,
    "requirement": specs.RequirementSpec,
    "sample-size": specs.SampleSizeSpec,
    "reader": specs.ReaderSpec,
    "sentences": specs.WriteSpec,
    "quiz": specs.QuizSpec,
    "answers": specs.AskSpec,
    "tuned": questions.TunedSpec,
    "pilot": specs.PilotedSpec,
    "stream": specs.CoderTokens,
    "frontier": specs.MeasureSpec,
    "replacement": specs.MeasureSpec,
    "coders-report": specs.Spec,
}


def golden(file: str) -> Any:
    return json.loads((GOLDEN / file).read_text())


# -- sources and VERSION ----------------------------------------------------------------------------------------------


def unblessed(step: Step, blessed: dict[str, dict[str, Any]]) -> str | None:
    """What to do if `step` is not as it was blessed."""
    known = blessed.get(step.kind)
    if known == {"version": step.version, "source": source_hash(step)}:
        return None
    if known is None or known["version"] != step.version:
        return f"step {step.kind!r} has a new VERSION or is new: run `make bless-steps`"
    return (
        f"the source of step {step.kind!r} changed. If its results change, bump its VERSION in nlrewrite/steps.py; "
        f"then run `make bless-steps`"
    )


def test_no_source_changed_without_a_decision() -> None:
    blessed = golden("steps.json")
    assert [said for step in STEPS.values() if (said := unblessed(step, blessed))] == []
    assert set(blessed) == set(STEPS)


def test_an_edited_source_asks_for_a_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "some_step_source.py"
    source.write_text("def build(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    step = Step("some", 1, "some_step_source:build", ("some_step_source",))
    blessed = {"some": {"version": 1, "source": source_hash(step)}}
    assert unblessed(step, blessed) is None
    source.write_text("def build(): return 2\n")
    assert "bump its VERSION in nlrewrite/steps.py; then run `make bless-steps`" in (unblessed(step, blessed) or "")
    raised = Step("some", 2, step.function, step.sources)
    assert "has a new VERSION" in (unblessed(raised, blessed) or "")
    assert "is new" in (unblessed(raised, {}) or "")


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_names_all_its_sources(kind: str) -> None:
    """But for the ground, and for what steps before it name: it reads their artifacts with their modules."""
    step, earlier = STEPS[kind], list(STEPS)[: list(STEPS).index(kind)]
    assert step.function.partition(":")[0] in step.sources
    named = {*step.sources, *(source for each in earlier for source in STEPS[each].sources)}
    missing = sorted(_reached(step.function.partition(":")[0]) - named)
    assert missing == [], f"add to the sources of {kind!r} in nlrewrite/steps.py: {', '.join(missing)}"


def test_imports_are_found_in_functions_too() -> None:
    assert _imports("nlrewrite.composition") >= {"nlrewrite.artifacts", "nlrewrite.specs"}
    assert _imports("nlrewrite.seeds") == set()
    assert "nlrewrite.artifacts.s3" in _imports("nlrewrite.artifacts.place")


def _reached(module: str) -> set[str]:
    """`module` and all of ours that it imports, at the top or in a function, directly or not; but for the ground."""
    reached, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        if current not in reached and not any(current == each or current.startswith(f"{each}.") for each in GROUND):
            reached.add(current)
            waiting.extend(_imports(current))
    return {each for each in reached if not _is_package(each)}


def _imports(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(_source(module).read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(node.module)
            found.update(each for each in submodules if each.startswith("nlrewrite.") and _exists(each))
    return {each for each in found if each.startswith("nlrewrite.")}


def _source(module: str) -> Path:
    found = importlib.util.find_spec(module)
    assert found is not None, f"{module} is imported and is not there"
    assert found.origin is not None, f"{module} is a folder without an __init__.py"
    return Path(found.origin)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _is_package(module: str) -> bool:
    return _source(module).name == "__init__.py"


def test_the_tree_of_seeds_has_not_moved() -> None:
    assert [derive(0, "coder", 3), derive(1, "a"), derive((1 << 31) - 1)] == [
        2900451013477211034,
        1155254847670415180,
        7462600756161033100,
    ]
    assert generator(0, "coder", 3).integers(0, 1 << 31, 3).tolist() == [684708961, 160883771, 718560177]


# -- fields -----------------------------------------------------------------------------------------------------------


def fields_of_specs() -> dict[str, dict[str, Any]]:
    """Every field of every spec: its default as it would stand in a manifest, and since which VERSION it is there."""
    found = {}
    for model in _models(specs.Spec):
        found[model.__name__] = {
            field_name: {
                "default": None if field.is_required() else canonical(field.get_default(call_default_factory=True)),
                **_since(field),
            }
            for field_name, field in model.model_fields.items()
        }
    return found


MODULES = (specs.__name__, specs.Spec.__module__, questions.__name__, coding.__name__)


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    below = [each for direct in model.__subclasses__() for each in (direct, *_models(direct))]
    return sorted((each for each in below if each.__module__ in MODULES), key=lambda each: each.__name__)


def _since(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return {"since": extra["since"]} if isinstance(extra, dict) and "since" in extra else {}


def test_every_field_that_names_results_is_written_down() -> None:
    assert fields_of_specs() == golden("specs.json"), (
        "the fields of the specs changed. A new field that leaves old results as they were carries "
        "json_schema_extra={'since': VERSION} and a default that means the old behaviour; every other change loses the "
        "artifacts there are. Decide, then run `python -m tests.test_steps specs`"
    )


# -- names ------------------------------------------------------------------------------------------------------------


def some_names() -> list[dict[str, Any]]:
    """A default spec of every step, and the variants of those that have some, with the names they give."""
    variants: dict[str, list[specs.Spec]] = {kind: [] for kind in STEPS}
    inputs_of: dict[str, dict[str, Artifact]] = {}

    def note(label: str, kind: str, spec: specs.Spec, **inputs: Artifact) -> Artifact:
        variants[kind].append(spec)
        inputs_of.setdefault(kind, inputs)
        return name(kind, spec, inputs)

    rewrite(specs.RewriteSpec(), note)
    rewrite(specs.RewriteSpec(probes=specs.PROBES), note)
    revision = "0123456789abcdef0123456789abcdef01234567"
    written = ("writer.kind=hub", "writer.model=some/model", f"writer.revision={revision}", "tune.steps=300")
    pilot(profiles.settled("smoke-reader", profiles.Overrides(settings=written)), note, note)
    streamed = profiles.settled("smoke", profiles.Overrides(settings=("coder.data.kind=rows",)))
    for walk in ("sweep", "replace"):
        WALKS[walk](streamed, note, one_by_one(note))
    variants["coder"] += [
        specs.HubCoder(repo="some/coder", revision=revision, path="layers.6.mlp"),
        specs.FolderCoder(content="0" * 64),
    ]
    variants["stream"] += [
        specs.HubTokens(dataset="some/texts", revision=revision),
        specs.FolderTokens(content="0" * 64),
    ]
    text = specs.HubDataset(dataset="some/texts", revision=revision, config="ten")
    variants["corpus"] += [specs.TextSpec(source=text), specs.TextSpec(source=specs.TextFolder(content="0" * 64))]
    variants["subject"] += [
        specs.HubSubject(model="some/model", revision=revision, dtype="bfloat16"),
        specs.FolderSubject(content="0" * 64),
    ]
    variants["tokens"].append(specs.TokensSpec(limits={"train": 100, "report": 7}))
    return [
        {
            "kind": kind,
            "version": 1,
            "spec": canonical(spec),
            "inputs": {label: str(each) for label, each in inputs_of[kind].items()},
            "digest": digest([kind, 1, spec, {label: str(each) for label, each in inputs_of[kind].items()}]),
        }
        for kind, each_of in variants.items()
        for spec in {digest(each): each for each in each_of}.values()
    ]


def test_old_specs_have_the_names_they_had() -> None:
    """Read from their JSON as an old manifest holds it, so that a field added since has its default."""
    for row in golden("names.json"):
        spec = TypeAdapter(SPEC_OF[row["kind"]]).validate_python(row["spec"])
        found = digest([row["kind"], row["version"], spec, row["inputs"]])
        assert found == row["digest"], (
            f"a spec of {row['kind']!r} lost its name, and with it every artifact that it named. Give a new field "
            f"json_schema_extra={{'since': VERSION}}, or decide to lose them: `python -m tests.test_steps names`"
        )


def test_every_kind_has_a_name_written_down() -> None:
    assert {row["kind"] for row in golden("names.json")} == set(STEPS) == set(SPEC_OF)


def test_a_name_takes_in_the_inputs_and_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Artifact(kind="corpus", digest="0" * 16)
    other = Artifact(kind="corpus", digest="1" * 16)
    first = name("subject", specs.TinySubject(), {"corpus": corpus})
    assert first == name("subject", specs.TinySubject(), {"corpus": corpus})
    assert first != name("subject", specs.TinySubject(), {"corpus": other})
    step = STEPS["subject"]
    monkeypatch.setitem(STEPS, "subject", Step("subject", step.version + 1, step.function, step.sources, step.inputs))
    assert first != name("subject", specs.TinySubject(), {"corpus": corpus})


def test_a_step_with_the_wrong_inputs_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="subject takes"):
        name("subject", specs.TinySubject(), {})


# -- blessing ---------------------------------------------------------------------------------------------------------


def bless(what: str) -> None:
    written: Any
    if what == "steps":
        written = {kind: {"version": step.version, "source": source_hash(step)} for kind, step in STEPS.items()}
    elif what == "specs":
        written = fields_of_specs()
    else:
        assert what == "names", f"bless steps, specs or names, not {what!r}"
        written = some_names()
    (GOLDEN / f"{what}.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    bless(*(sys.argv[1:] or ["steps"]))
