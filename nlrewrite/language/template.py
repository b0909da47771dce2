"""A prompt as data: what is said to a language model, with places for what is asked about.

In: YAML, ours (`templates/`) or a user's. Out: a frozen `Template`, or a `PromptSpec` that holds the whole text, which
is what identifies a result. Invariants: a shown example has the very layout of the question, since both are made from
the same pieces; a template that names an unknown field, or has none for what it should ask, is refused with the place.
"""

import re
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nlrewrite.errors import SettingError
from nlrewrite.questions import Order, PromptSpec

FOLDER = Path(__file__).with_name("templates")
LONGEST_FILE = 200_000
SIDES: dict[str, Order] = {
    "context": "context",
    "examples": "context",
    "others": "context",
    "missed": "context",
    "wrong": "context",
    "explanation": "explanation",
    "score": "explanation",
}
"""Which half of a question each field belongs to; a template's order says which half comes first."""
LISTS = ("examples", "others", "missed", "wrong")

Role = Literal["system", "user", "assistant"]
Text = Annotated[str, Field(pattern=r"^[^\x00-\x08\x0b-\x1f\x7f\ue000-\uf8ff]*$")]
Given = dict[str, Any]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(_Frozen):
    """A turn that is said as it stands."""

    role: Role
    text: Text


class Shot(_Frozen):
    """A question with its answer, shown before the one that is asked."""

    context: Text | None = None
    explanation: Text | None = None
    score: float | None = None
    examples: tuple[Text, ...] | None = None
    others: tuple[Text, ...] | None = None
    missed: tuple[Text, ...] | None = None
    wrong: tuple[Text, ...] | None = None
    answer: Text

    @property
    def given(self) -> Given:
        return {name: value for name in SIDES if (value := getattr(self, name)) is not None}


class Plain(_Frozen):
    """How turns are set where there is no chat template: `{text}` is the turn's."""

    system: Text = "{text}\n\n"
    user: Text = "{text}\n"
    assistant: Text = "Answer: {text}\n\n"

    @model_validator(mode="after")
    def _one_text(self) -> "Plain":
        for role in ("system", "user", "assistant"):
            if getattr(self, role).count("{text}") != 1:
                raise ValueError(f"plain.{role} must have {{text}} once: {getattr(self, role)!r}")
        return self


class Template(_Frozen):
    """One way to ask one kind of question."""

    version: Literal[1]
    about: str = Field(min_length=1, description="One line: what it asks.")
    answer: Literal["label", "list", "sentence"] = Field(
        description="label: one of `labels`, by probability; list and sentence: text."
    )
    layout: Literal["chat", "plain"] = Field(
        default="chat", description="chat: the tokenizer's chat template, where it has one; plain: never."
    )
    plain: Plain = Plain()
    contexts: Literal["plain", "tokens"] = Field(
        default="plain", description="How a context is shown: as text, or as a row of tokens in quotes."
    )
    system: Text = ""
    before: tuple[Message, ...] = Field(default=(), description="Turns said before the shots, as they stand.")
    turn: tuple[Text, ...] = Field(min_length=1, description="Pieces of a question, with at most one {field} each.")
    item: Text = Field(default="{number}. {text}\n", description="How one text of a list is set.")
    shots: tuple[Shot, ...] = ()
    stub: Text = Field(default="", description="What every answer begins with.")
    close: Text = Field(default="", description="What an answer ends with.")
    labels: tuple[str, ...] = Field(default=(), description="The answers that are compared, in order of their value.")
    longest_explanation: int = Field(default=2000, ge=40, le=100_000, description="Characters of one, at most.")
    longest_context: int = Field(default=16_000, ge=40, le=1_000_000, description="Characters of one, at most.")

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Every field of the turn, in the order in which the pieces stand."""
        return tuple(name for piece in self.turn if (name := field(piece)))

    @model_validator(mode="after")
    def _whole(self) -> "Template":
        for piece in self.turn:
            field(piece)
        if not self.fields:
            raise ValueError("turn has no {field}: there is nothing to ask about. Name one of " + ", ".join(SIDES))
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"turn has a field twice: {', '.join(self.fields)}. Name each once")
        inner = [bool(field(piece)) for piece in self.turn]
        first, last = inner.index(True), len(inner) - 1 - inner[::-1].index(True)
        if not all(inner[first : last + 1]):
            raise ValueError("turn has a piece without a field between others. Put its words into the next one's piece")
        if self.item.count("{text}") != 1 or "{" in re.sub(r"\{(text|number)\}", "", self.item):
            raise ValueError(f"item must have {{text}} once, and may have {{number}}: {self.item!r}")
        if self.stub != self.stub.rstrip():
            raise ValueError(f"stub must not end with a space, which would be a part of the next token: {self.stub!r}")
        if (self.answer == "label") != bool(self.labels):
            raise ValueError(f"labels are for answer: label, and only for it: answer is {self.answer}, {self.labels}")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must differ: {', '.join(self.labels)}")
        for number, shot in enumerate(self.shots):
            missing = [name for name in self.fields if name != "score" and name not in shot.given]
            spare = [name for name in shot.given if name not in self.fields]
            if missing or spare:
                wrong = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(spare)}, which the turn has not"
                raise ValueError(f"shots.{number} {wrong}. A shot is set like the question, from the same fields")
            if self.labels and shot.answer not in self.labels:
                raise ValueError(f"shots.{number}.answer must be one of the labels: {shot.answer!r}")
        return self

    def pieces(self, order: Order) -> tuple[str, ...]:
        """The turn with the half that `order` names first; pieces without a field stay where they are."""
        fixed = [index for index, piece in enumerate(self.turn) if not field(piece)]
        asked = [piece for piece in self.turn if field(piece)]
        asked.sort(key=lambda piece: SIDES[field(piece)] != order)
        return tuple(self.turn[index] if index in fixed else asked.pop(0) for index in range(len(self.turn)))


def field(piece: str) -> str:
    """The one field of a piece, or nothing; a doubled brace is a brace."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(piece) if name is not None]
    except ValueError as error:
        raise ValueError(f"a brace that opens no field is written twice: {piece!r}") from error
    unknown = [name for name in names if name not in SIDES]
    if unknown:
        raise ValueError(f"there is no field {unknown[0]!r}: {piece!r}. There are {', '.join(SIDES)}")
    if len(names) > 1:
        raise ValueError(f"a piece has one field, not {len(names)}: {piece!r}. Make a piece of each")
    return names[0] if names else ""


def around(piece: str) -> tuple[str, str]:
    """What stands before and behind the field of a piece."""
    texts, split = ["", ""], 0
    for text, name, _, _ in Formatter().parse(piece):
        texts[split] += text
        split = 1 if name is not None else split
    return texts[0], texts[1]


# -- reading ----------------------------------------------------------------------------------------------------------


def read(text: str, name: str) -> Template:
    """The template that a text holds; a SettingError names what is wrong in it and where."""
    import yaml

    if len(text) > LONGEST_FILE:
        raise SettingError(
            f"template {name} has {len(text)} characters, and at most {LONGEST_FILE} are read. Shorten it"
        )
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise SettingError(f"template {name} repeats itself by *alias, which is not read. Write the text out")
        twice = _twice(yaml.compose(text, yaml.SafeLoader))
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingError(f"template {name} is not YAML: {' '.join(str(error).split())}. Correct it") from error
    if twice:
        raise SettingError(f"template {name} says {twice}. Take one away")
    if not isinstance(fields, dict):
        raise SettingError(f"template {name} must hold fields by name, such as turn: [...]: it holds {fields!r:.60}")
    try:
        return Template.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "as a whole"
        why = first["msg"].removeprefix("Value error, ")
        raise SettingError(f"template {name}, {place}: {why[:1].lower()}{why[1:]}. Correct that place") from error


def _twice(node: Any) -> str:
    """Which field of a mapping is given twice, and where; of such the last would win unseen."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return next((found for each in node.value if (found := _twice(each))), "")
    if not isinstance(node, yaml.MappingNode):
        return ""
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            return f"{key.value} twice, again in line {key.start_mark.line + 1}"
        seen.add(str(key.value))
        if found := _twice(value):
            return found
    return ""


def names() -> list[str]:
    """The templates that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def text_of(name: str, folder: str | None = None) -> str:
    """The text of a template: the user's folder first, then ours."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise SettingError(f"a template's name has letters, digits and . _ - only: {name!r}. Rename the file")
    if folder and not Path(folder).is_dir():
        raise SettingError(f"there is no folder {folder}. Change --template-folder")
    places = [*([Path(folder)] if folder else []), FOLDER]
    for place in places:
        file = place / f"{name}.yaml"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    theirs = f" nor in {folder}" if folder else ""
    raise SettingError(
        f"there is no template {name!r} among ours{theirs}: {', '.join(names())}. "
        f"Name one of them, or put {name}.yaml into the template folder"
    )


def built_in(name: str) -> Template:
    return read(text_of(name), name)


def filled(prompt: PromptSpec, folder: str | None) -> PromptSpec:
    """The spec with the whole text of its template, read and found correct."""
    text = prompt.text or text_of(prompt.name, folder)
    read(text, prompt.name)
    return prompt.model_copy(update={"text": text})


def template(prompt: PromptSpec) -> Template:
    """The template of a spec that has been filled in."""
    if not prompt.text:
        raise SettingError(f"prompt {prompt.name!r} has no text: it was not filled in. Fill it in before it is used")
    return read(prompt.text, prompt.name)
