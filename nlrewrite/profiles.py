"""Named sets of settings, and the one way from a name and a user's changes to the spec of a rewriting.

In: a profile's name, `Overrides` (the form in the Prefect UI, or the command line's options) and the execution. Out:
a complete `RewriteSpec`, with the content of local sources filled in. Invariant: two ways of saying the same settings
give the same spec, and a setting that does not exist is an error that names its neighbours.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlrewrite import specs
from nlrewrite.errors import NotYet, SettingError
from nlrewrite.execution import Execution
from nlrewrite.protocols import PROTOCOLS, merged
from nlrewrite.published import CAPABILITIES, PUBLISHED, UNCHOSEN, Published
from nlrewrite.specs import RewriteSpec


class Profile(BaseModel):
    """A named starting point: fields of a RewriteSpec that differ from the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str
    fields: dict[str, Any] = Field(default_factory=dict)
    published: Published | None = None
    needs: tuple[str, ...] = Field(default=(), description="Capabilities a run takes that this version does not have.")


READ_BY_A_MODEL: dict[str, Any] = {
    "lengths": (),
    "ask": {"contexts": "cases", "gate": True, "window": 9, "order": "explanation", "prompt": {"name": "reader"}},
    "calibrate": {"calibrators": ("none", "quantile-6", "isotonic-shrunk", "hurdle", "hurdle@log-odds")},
    "evaluate": {"positions": ("last",), "fractions": (0.5, 1.0)},
    "pilot": {"position": "last", "calibrator": "hurdle@log-odds"},
}
SMOKE: dict[str, Any] = {
    "tokens": {"limits": {"train": 200, "explain": 60, "calibrate": 40, "report": 30}},
    "subject": {"layers": 2, "width": 32, "vocabulary": 300, "context": 64, "batch": 8, "steps": 30},
    "coder": {"site": {"layer": 1}, "width": 64, "k": 4, "steps": 60, "batch": 256},
    "layers": {"layers": (0, 1)},
    "explain": {"max_quotes": 4, "max_words": 30, "min_active": 5},
    "lengths": (2,),
    "score": {"examples": 10},
    "evaluate": {"fractions": (0.5, 1.0), "subsets": 1, "resamples": 200},
    "report": {"latents": 8, "examples": 2},
    "ladder": {"aucs": (0.95,), "fractions": (0.5, 1.0), "resamples": 200},
    "requirement": {"specificities": (0.9, 0.99), "aucs": (0.84, 0.98), "resamples": 200},
    "sample_size": {
        "contexts": (50, 200),
        "cases": ((5, 20),),
        "calibrators": ("quantile-6", "hurdle"),
        "resamples": 200,
    },
}

PROFILES: dict[str, Profile] = {
    "tiny": Profile(summary="A small GPT-NeoX trained here, a skip transcoder on its last MLP. No downloads."),
    "tiny-no-skip": Profile(summary="As tiny, without the skip term.", fields={"coder": {"skip": False}}),
    "tiny-sae": Profile(
        summary="As tiny, with a TopK SAE on the residual stream after the same layer.",
        fields={"coder": {"site": {"kind": "residual"}, "skip": False}},
    ),
    "tiny-reader": Profile(
        summary="As tiny, but a small Llama that is trained here reads the sentences. No downloads.",
        fields=READ_BY_A_MODEL | {"reader": {"kind": "trained"}},
    ),
    "smoke": Profile(
        summary="Seconds, not minutes, and no meaning: every stage once, as small as it goes.", fields=SMOKE
    ),
    "smoke-reader": Profile(
        summary="As smoke, with a reader of a few training steps: it reads nothing, and shows that all stages run.",
        fields=merged(
            SMOKE,
            READ_BY_A_MODEL
            | {
                "reader": {"kind": "trained", "layers": 1, "width": 32, "steps": 5, "batch": 8},
                "ask": {**READ_BY_A_MODEL["ask"], "active": 5, "inactive": 15},
                "explain": {"max_quotes": 4, "max_words": 30, "min_active": 5},
                "calibrate": {"calibrators": ("none", "quantile-6", "hurdle"), "folds": 2},
                "pilot": {**READ_BY_A_MODEL["pilot"], "latents": 20, "active": 5, "inactive": 20},
            },
        ),
    ),
    **{
        name: Profile(summary=summary, fields=fields, published=published, needs=needs)
        for name, (summary, fields, published, needs) in PUBLISHED.items()
    },
}


def profile_names() -> tuple[str, ...]:
    return tuple(PROFILES)


class Overrides(BaseModel):
    """The settings that people change most, and a line for each of the others. An empty field keeps the profile's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int | None = Field(
        default=None,
        ge=0,
        lt=1 << 31,
        description="Seed of every stage: documents' split, subject, coder, sampling, bootstrap.",
        json_schema_extra={"position": 0},
    )
    protocol: Literal["ours", "p1", "p2", "p1-code"] | None = Field(
        default=None,
        description="Whose protocol to follow: ours, the two published texts', or the published program's.",
        json_schema_extra={"position": 1},
    )
    latents: int | None = Field(
        default=None, ge=2, le=1 << 20, description="Number of latents of the coder.", json_schema_extra={"position": 2}
    )
    k: int | None = Field(
        default=None, ge=1, le=4096, description="Latents active on a token.", json_schema_extra={"position": 3}
    )
    layer: int | None = Field(
        default=None, ge=0, le=1024, description="Layer that is rewritten, from 0.", json_schema_extra={"position": 4}
    )
    coder_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Training steps of the coder.",
        json_schema_extra={"position": 5},
    )
    max_quotes: int | None = Field(
        default=None,
        ge=1,
        le=200,
        description="Quoted tokens in an explanation, at most.",
        json_schema_extra={"position": 6},
    )
    max_words: int | None = Field(
        default=None, ge=10, le=1000, description="Words in an explanation, at most.", json_schema_extra={"position": 7}
    )
    resamples: int | None = Field(
        default=None, ge=200, le=100_000, description="Bootstrap resamples.", json_schema_extra={"position": 8}
    )
    settings: tuple[str, ...] = Field(
        default=(),
        description="Any other setting, as dotted assignments: coder.skip=false",
        json_schema_extra={"position": 9},
    )


def probing(overrides: Overrides, probes: Sequence[str]) -> Overrides:
    """`overrides` with these probes asked for, and no others."""
    return overrides.model_copy(update={"settings": (*overrides.settings, f"probes={json.dumps(list(probes))}")})


FORM = {
    "protocol": "evaluate.protocol",
    "latents": "coder.width",
    "k": "coder.k",
    "layer": "coder.site.layer",
    "coder_steps": "coder.steps",
    "max_quotes": "explain.max_quotes",
    "max_words": "explain.max_words",
    "resamples": "evaluate.resamples",
}


DEFAULTS = RewriteSpec().model_dump()
KINDS = (
    *("text.source.kind", "subject.kind", "coder.kind", "coder.data.kind"),
    *("reader.kind", "screener.kind", "writer.kind"),
)


def resolve(profile: str, overrides: Overrides, execution: Execution) -> RewriteSpec:
    """The spec that `profile` and `overrides` mean, with the content of local sources filled in."""
    from nlrewrite.filling import filled

    return filled(settled(profile, overrides), execution)


def settled(profile: str, overrides: Overrides) -> RewriteSpec:
    """The spec that `profile` and `overrides` mean; touches no file and no network."""
    fields = merged({}, chosen(profile).fields)
    known = settings()
    changes = [(path, getattr(overrides, name)) for name, path in FORM.items()]
    changes = [(path, value) for path, value in changes if value is not None]
    for setting in overrides.settings:
        changes += _parse(setting, known, profile)
    protocol = dict(changes).get("evaluate.protocol") or fields.get("evaluate", {}).get("protocol", "ours")
    if protocol in PROTOCOLS:  # the settings of one that is not there are refused below, with its name
        fields = merged(fields, PROTOCOLS[protocol].fields)
    for path, value in sorted(changes, key=lambda change: change[0] not in KINDS):
        _assign(fields, path, value)
    for path in KINDS:
        if path != "coder.data.kind" or fields["coder"]["kind"] == "trained":
            _assign(fields, path, _get(fields, path) or _default(path))
    if overrides.seed is not None:
        fields = specs.with_seed(fields, overrides.seed)
    try:
        return RewriteSpec.model_validate(fields)
    except ValidationError as error:
        raise SettingError(_sentence(error)) from error


def chosen(profile: str) -> Profile:
    if profile not in PROFILES:
        near = difflib.get_close_matches(profile, PROFILES, n=3) or list(PROFILES)
        raise SettingError(f"no profile is called {profile!r}. Choose from: {', '.join(near)}")
    return PROFILES[profile]


def require_runnable(profile: str, spec: RewriteSpec, walk: str = "rewrite") -> None:
    """Refuse to run what this version cannot do, or what has no revision yet. Planning needs neither."""
    needs = chosen(profile).needs
    if needs and walk == "rewrite":
        words = [CAPABILITIES[need] for need in needs]
        listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
        raise NotYet(
            f"profile {profile} cannot be run yet: it needs {listed}, which this version does not have. "
            f"See what it would take with: nlrewrite plan --profile {profile}"
        )
    if isinstance(spec.subject, specs.HubSubject) and spec.subject.revision == UNCHOSEN:
        raise SettingError(
            f"the revision of {spec.subject.model} is not chosen. Choose one with --set subject.revision=<commit>"
        )
    if isinstance(spec.coder, specs.HubCoder) and spec.coder.revision == UNCHOSEN:
        raise SettingError(
            f"the revision of {spec.coder.repo} is not chosen. Choose one with --set coder.revision=<commit>"
        )
    datasets: dict[str, Any] = {"text.source": spec.text.source}
    if isinstance(spec.coder, specs.CoderSpec):
        datasets["coder.data"] = spec.coder.data
    for section, source in datasets.items():
        if isinstance(source, specs.HubDataset) and source.revision == UNCHOSEN:
            raise SettingError(
                f"the revision of {source.dataset} is not chosen. Choose one with --set {section}.revision=<commit>"
            )


# -- settings by their dotted names -----------------------------------------------------------------------------------


def flat(fields: Mapping[str, Any], above: str = "") -> list[str]:
    """Nested settings, as a file holds them, as the assignments that `--set` takes."""
    found = []
    for name, value in fields.items():
        path = f"{above}{name}"
        nested = isinstance(value, Mapping) and value
        found += flat(value, f"{path}.") if nested else [f"{path}={json.dumps(value)}"]
    return found


@cache
def settings() -> dict[str, Mapping[str, Any]]:
    """Every dotted name that can be set, in the order of the pipeline, with its JSON schema."""
    schema = RewriteSpec.model_json_schema()
    found: dict[str, Mapping[str, Any]] = {}

    def walk(node: Mapping[str, Any], path: str) -> None:
        if "$ref" in node:
            walk(schema["$defs"][node["$ref"].rpartition("/")[2]], path)
        elif "oneOf" in node:
            for each in node["oneOf"]:
                walk(each, path)
        elif "properties" in node:
            for name, each in node["properties"].items():
                walk(each, f"{path}.{name}" if path else name)
        elif "propertyNames" in node:
            for key in node["propertyNames"]["enum"]:
                found[f"{path}.{key}"] = node["additionalProperties"]
        else:
            found.setdefault(path, node)

    walk(schema, "")
    return found


def _parse(setting: str, known: Mapping[str, Mapping[str, Any]], profile: str) -> list[tuple[str, Any]]:
    """`coder.k=64` as a path and a value. What is no JSON is text, and so is what a text field is given."""
    path, equals, text = (part.strip() for part in setting.partition("="))
    if not equals or not path:
        raise SettingError(f"a setting is written as name=value: {setting!r}. For instance --set coder.k=64")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    inner = [name for name in known if name.startswith(f"{path}.")]
    if inner:
        if not isinstance(value, dict) or not value:
            raise SettingError(f"{path} is a section, not a value: {text}. Set one of {', '.join(inner[:6])}")
        return [change for each in flat(value, f"{path}.") for change in _parse(each, known, profile)]
    if path not in known:
        raise SettingError(f"no setting is called {path!r} in profile {profile}. {_nearest(path, known)}")
    is_text = "string" in (known[path].get("type"), *(each.get("type") for each in known[path].get("anyOf", ())))
    return [(path, text if is_text and isinstance(value, int | float) else value)]


def _nearest(path: str, known: Mapping[str, Any]) -> str:
    same = [name for name in known if name.rpartition(".")[2] == path.rpartition(".")[2]]
    near = list(dict.fromkeys(same + difflib.get_close_matches(path, known, n=3)))[:4]
    return f"Did you mean {' or '.join(near)}?" if near else f"Its sections are {', '.join(RewriteSpec.model_fields)}"


def _assign(fields: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        fields = fields.setdefault(name, {})
    if path in KINDS and fields.get("kind", _default(path)) != value:
        fields.clear()  # another kind has other fields
    fields[last] = value


def _get(fields: Mapping[str, Any], path: str) -> Any:
    value: Any = fields
    for name in path.split("."):
        value = value.get(name, {})
    return value


def _default(path: str) -> str:
    return _get(DEFAULTS, path)


_NUMBERS = re.compile(r"[-+.\de]+(?:, ?[-+.\de]+)*")


def _sentence(error: ValidationError) -> str:
    """What is wrong with the first field: its name, what it should be, what it is, what to change."""
    first = error.errors()[0]
    tags = ("tiny", "hub", "folder", "python-docs", "rules", "trained", "served", "split", "rows")
    places = [part for part in first["loc"] if part not in tags]
    within = next((at for at, part in enumerate(places) if isinstance(part, int)), len(places))
    where = ".".join(str(part) for part in places[:within])  # the setting, and not a place in its list
    kind = next((str(part) for part in reversed(first["loc"]) if part in tags), "")  # of the innermost section
    section = where.rpartition(".")[0]
    given = json.dumps(first["input"], ensure_ascii=False, default=str)
    match first["type"]:
        case "value_error":
            return first["msg"].removeprefix("Value error, ")
        case "extra_forbidden":
            return f"{where} is not a setting of {section}.kind={kind}. Leave it out, or change --set {section}.kind"
        case "missing" if within == len(places):
            return f"{where} is needed by {section}.kind={kind} and has no default. Give it with --set {where}=..."
        case "missing" | "too_short" | "too_long" | "tuple_type" if within < len(places):
            return (
                f"each entry of {where} is a list of its own, as in {[*_get(DEFAULTS, where)[0]]}, not {given}. "
                f"Change --set {where}"
            )
        case "too_short":
            least = first.get("ctx", {})["min_length"]
            return f"{where} takes a list of at least {least}, not {given}. Change --set {where}"
        case "tuple_type":
            plain = first["input"] if _NUMBERS.fullmatch(str(first["input"])) else given
            return f"{where} takes a list, not {given}. Write --set '{where}=[{plain}]'"
        case "union_tag_invalid":
            kinds = first.get("ctx", {}).get("expected_tags", "")
            return f"{where}.kind must be one of {kinds}: it is {first['input']['kind']!r}. Change --set {where}.kind"
        case _:
            pass
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"{where}: {message}, not {first['input']!r}. Change --set {where}"
