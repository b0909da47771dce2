"""How language models join the composition: which steps there are, what names them, and what is refused."""

import pytest

from nlrewrite import filling, pipeline, profiles, steps
from nlrewrite.artifacts import Artifact
from nlrewrite.composition import pilot, rewrite
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.llm import reader
from nlrewrite.profiles import Overrides
from nlrewrite.questions import PromptSpec
from nlrewrite.specs import RewriteSpec, Spec

HUB = ("writer.kind=hub", "writer.model=someone/model", f"writer.revision={'a' * 40}")


def settled(*settings: str, profile: str = "smoke-reader") -> RewriteSpec:
    return profiles.settled(profile, Overrides(settings=settings))


def inputs(spec: RewriteSpec) -> dict[str, tuple[str, set[str]]]:
    found: dict[str, tuple[str, set[str]]] = {}

    def note(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        found[label] = kind, set(inputs)
        return steps.name(kind, spec, inputs)

    rewrite(spec, note)
    return found


def names(spec: RewriteSpec) -> dict[str, str]:
    found: dict[str, str] = {}

    def note(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        found[label] = str(steps.name(kind, spec, inputs))
        return steps.name(kind, spec, inputs)

    rewrite(spec, note)
    return found


def test_a_reader_answers_where_rules_would_and_rules_stand_beside_it() -> None:
    found = inputs(settled())
    assert found["reader"] == ("reader", {"subject", "tokens"})
    by_cases = {"subject", "tokens", "explanations", "reader", "activations", "gates"}
    assert found["simulation-calibrate"] == ("answers", by_cases)
    assert found["simulation-report"] == ("answers", by_cases - {"activations"})
    assert found["simulation-report-shuffled"][0] == "answers"
    assert found["simulation-report-by-rules"][0] == found["simulation-calibrate-by-rules"][0] == "simulation"
    assert found["simulation-report-gate"][0] == "gating"
    assert "reader" in found["report"][1] and "reader" not in found["evaluation"][1]
    assert found["scores"][0] == "scores"  # the rule reader's, which cost nothing


def test_a_reader_may_be_taught_further_and_the_taught_one_answers() -> None:
    def reading(*settings: str) -> dict[str, dict[str, Artifact]]:
        found: dict[str, dict[str, Artifact]] = {}

        def note(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
            found[label] = inputs
            return steps.name(kind, spec, inputs)

        rewrite(settled(*settings), note)
        return found

    plain, taught = inputs(settled()), inputs(settled("tune.steps=3"))
    assert taught.keys() - plain.keys() == {"tuned"}
    assert taught["tuned"] == ("tuned", {"subject", "tokens", "explanations", "activations", "reader"})
    assert taught["report"][1] - plain["report"][1] == {"tuned"}
    found = reading("tune.steps=3")
    assert found["tuned"]["activations"] == found["evaluation"]["explain"]
    assert found["tuned"]["reader"] == found["report"]["reader"] == reading()["report"]["reader"]
    asked = {label for label, (kind, _) in taught.items() if kind == "answers"}
    assert len(asked) == 4
    assert {found[label]["reader"] for label in asked} == {found["report"]["tuned"]}
    three, four = names(settled("tune.steps=3")), names(settled("tune.steps=4"))
    changed = {label for label in three if three[label] != four[label]}
    assert {"tuned", *asked} <= changed and not changed & {"reader", "explanations", "scores"}


def test_a_writer_writes_and_is_quizzed() -> None:
    found = inputs(settled("ask.gate=false", *HUB))
    assert found["explanations"] == ("sentences", {"subject", "tokens", "activations", "coder", "writer"})
    assert found["scores"][0] == "quiz"
    assert not any(label.endswith(("-by-rules", "-gate", "-gated")) for label in found)
    assert "gates" not in found


def test_a_gate_and_a_score_come_with_the_question() -> None:
    found = inputs(settled("ask.gate=true", "ask.with_score=true"))
    assert {"gates", "scores"} <= found["simulation-report"][1]


def test_without_a_language_model_nothing_of_it_is_named() -> None:
    spec = profiles.settled("smoke", Overrides())
    assert filling.filled(spec, Execution()).ask == spec.ask
    other = profiles.settled("smoke", Overrides(settings=("ask.window=7", "quiz.at_once=3")))
    assert names(spec) == names(other)


def test_words_are_identity_and_engines_are_not(tmp_path) -> None:
    spec = settled()
    first = filling.filled(spec, Execution(engine="packed"))
    assert first.ask.prompt.text and not spec.ask.prompt.text
    assert names(filling.filled(spec, Execution(engine="reference"))) == names(first)
    (tmp_path / "own.yaml").write_text(first.ask.prompt.text.replace("about: The", "about: My"))
    own = filling.filled(settled("ask.prompt.name=own"), Execution(template_folder=str(tmp_path)))
    changed = {label for label, name in names(own).items() if names(first)[label] != name}
    assert {"simulation-report", "simulation-calibrate", "calibration", "evaluation"} <= changed
    assert not changed & {"reader", "explanations", "scores", "simulation-report-by-rules"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (('evaluate.positions=["all","last"]',), r"each window's last position.*evaluate\.positions"),
        (('probes=["ladder"]',), r"answered with the rule reader"),
        (("reader.kind=rules", *HUB), r"the rule reader cannot read.*reader\.kind"),
        (("ask.flavour=nonsense",), r"ask\.flavour"),
        (("reader.kind=hub",), r"reader\.model is needed"),
    ],
)
def test_what_cannot_be_is_refused(settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        settled(*settings)


def test_a_folder_reader_needs_its_folder() -> None:
    with pytest.raises(SettingError, match="--reader-folder"):
        filling.filled(settled("reader.kind=folder"), Execution())


def test_one_seed_reaches_every_question() -> None:
    spec = profiles.settled("smoke-reader", Overrides(seed=7))
    assert (spec.ask.seed, spec.write.seed, spec.quiz.seed) == (7, 7, 7)
    assert spec.tune.seed == 7
    assert spec.reader.model_dump()["seed"] == 7
    assert list(pipeline.labels(spec)) == list(pipeline.labels(settled()))


def test_a_reader_trained_here_is_named_by_the_words_it_is_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    screened = ("ask.screen=cascade", "screener.kind=trained", "screener.layers=1")
    spec = settled(*screened)
    first = filling.filled(spec, Execution())
    assert len(first.reader.template) == 64 and first.screener.template == first.reader.template  # type: ignore[union-attr]
    monkeypatch.setattr(reader, "prompt", lambda: PromptSpec(name="reader", text="another"))
    other = filling.filled(spec, Execution())
    changed = {label for label, name in names(other).items() if names(first)[label] != name}
    assert {"reader", "screener", "simulation-report"} <= changed and "explanations" not in changed
    assert names(filling.filled(first, Execution())) == names(first)  # what is filled in stays


def test_a_pilot_is_asked_behind_the_gates_of_the_run() -> None:
    def needs(*settings: str) -> tuple[set[str], set[str]]:
        built: list[str] = []
        given: list[set[str]] = []

        def note(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
            built.append(label)
            given.append(set(inputs))
            return steps.name(kind, spec, inputs)

        pilot(settled(*settings), note, pipeline.named)
        return set(built), given[-1]

    (built, inputs), (plain, without) = needs("ask.gate=true"), needs("ask.gate=false")
    assert built - plain == {"gates"} and inputs - without == {"gates"}
