"""HTML as values: elements whose every string is escaped unless it is markup already.

In: strings, numbers and markup. Out: `Markup`. Invariant: the only way from a string to the page is through `element`
or `text`, which escape it; `Markup(...)` itself is for literals of this package and drawings it made.
"""

import html
from collections.abc import Iterable

VOID = frozenset({"meta", "link", "br", "hr", "input", "col", "img"})
VERBATIM = frozenset({"style", "script"})


class Markup(str):
    """A piece of HTML."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name ...>children</name>`. Attributes: `class_` is class, `data_x` is data-x, None and False are left out."""
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        assert not children, f"<{name}> has no content"
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{together(children)}</{name}>")


def together(children: Iterable[object]) -> Markup:
    """The children one after another, each escaped unless it is markup."""
    return Markup("".join(text(child) for child in children))


def text(value: object) -> Markup:
    """One value as HTML; None is nothing, and a list is its items."""
    if value is None:
        return Markup("")
    if isinstance(value, Markup):
        return value
    if isinstance(value, str | int | float):
        return Markup(html.escape(str(value), quote=True))
    assert isinstance(value, Iterable), f"cannot be written: {value!r}"
    return together(value)


def verbatim(name: str, content: str) -> Markup:
    """A style or script element of this package's own; its content is not escaped, and cannot end it early."""
    assert name in VERBATIM, f"{name} is no element with verbatim content"
    assert "</" not in content, f"{name} would end early"
    assert "<!--" not in content, f"{name} would end early"
    return Markup(f"<{name}>{content}</{name}>")


def visible(characters: str) -> str:
    """`characters` with everything that would not show, or would reorder its neighbours, made visible."""
    return "".join(_visible(character) for character in characters)


def _visible(character: str) -> str:
    if character == "\n":
        return "⏎"
    if character == "\t":
        return "⇥"
    if character == " " or character.isprintable():
        return character
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value), quote=True)}"'
