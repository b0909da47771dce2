"""The lines that explain a miss."""

from nlrewrite.artifacts import Artifact, InputRecord, Manifest, canonical
from nlrewrite.artifacts.difference import differences, nearest
from nlrewrite.specs import RewriteSpec, TextFolder, TextSpec
from tests.artifacts.making import MADE, artifact


def manifest(name: str, spec: dict[str, object], time: str = MADE.time, **inputs: Artifact) -> Manifest:
    records = {label: InputRecord(artifact=each, attempt="1", files="") for label, each in inputs.items()}
    return Manifest(
        artifact=artifact(name), version=1, attempt=name, spec=spec, inputs=records, files=[],
        made=MADE.model_copy(update={"time": time}),
    )  # fmt: skip


def test_a_line_names_the_field_and_both_values() -> None:
    old = manifest("old", {"site": {"kind": "mlp", "layer": 1}, "k": 16, "note": "16"})
    assert differences(old, "coder", {"site": {"kind": "mlp", "layer": 2}, "k": 16, "note": "16"}) == [
        "coder.site.layer: 1 -> 2"
    ]
    assert differences(old, "coder", {"site": {"kind": "mlp", "layer": 1}, "k": 16, "note": 16}) == [
        'coder.note: "16" -> 16'
    ]


def test_fields_that_only_one_has_are_lines() -> None:
    old = manifest("old", {"k": 16, "gone": None})
    assert differences(old, "coder", {"k": 16, "new": [1, 2]}) == [
        "coder.gone: null -> (none)",
        "coder.new: (none) -> [1, 2]",
    ]


def test_inputs_and_version_are_lines_where_given() -> None:
    old = manifest("old", {"k": 16}, tokens=artifact("a", "tokens"))
    after = {"tokens": artifact("b", "tokens")}
    assert differences(old, "coder", {"k": 16}) == []
    assert differences(old, "coder", {"k": 16}, after, 2) == [
        f'coder.inputs.tokens: "{artifact("a", "tokens")}" -> "{artifact("b", "tokens")}"',
        "coder.VERSION: 1 -> 2",
    ]


def test_long_values_are_cut() -> None:
    (line,) = differences(manifest("old", {"prompt": "a" * 500}), "explain", {"prompt": "b" * 500})
    assert len(line) < 150


def test_of_equally_near_ones_the_latest_is_taken() -> None:
    made = [manifest(f"old {day}", {"k": 8}, f"2026-01-0{day}T00:00:00Z") for day in (2, 3, 1)]
    found = nearest(made, artifact("new"), {"k": 16})
    assert found is not None
    assert found.manifest.attempt == "old 3"


def test_the_artifact_itself_is_not_its_neighbour() -> None:
    assert nearest([manifest("same", {"k": 8})], artifact("same"), {"k": 16}) is None


def test_a_whole_rewriting_differs_in_what_was_changed() -> None:
    spec = RewriteSpec()
    other = spec.model_copy(update={"text": TextSpec(source=TextFolder(content="0" * 64))})
    lines = differences(manifest("old", canonical(spec)), "rewrite", canonical(other))
    assert lines == [
        'rewrite.text.source.kind: "python-docs" -> "folder"',
        f'rewrite.text.source.content: "" -> "{"0" * 56}...',
    ]
