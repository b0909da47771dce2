"""What a language model wrote, read: lists of small numbers, one choice, a sentence.

In: a reply of any size, well formed or not. Out: what it says, or None, which the caller counts as unparseable.
Invariants: of several lists the last well-formed one counts, and none is repaired; what is not there is None, never a
number; reading takes time in proportion to the reply.
"""

import re
from collections.abc import Sequence

from nlrewrite.language.context import ELLIPSIS, bounded, visible

LONGEST_SENTENCE = 1000
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_LABEL = re.compile(
    r"[ \t]{0,8}[*_#>\[\"']{0,4}(?:final|new|revised|updated|improved|better)?[ \t]?"
    r"(?:description|explanation|interpretation|answer|summary)[*_\]\"']{0,4}[ \t]?:[*_]{0,4}",
    re.IGNORECASE,
)
_BULLET = re.compile(r"[ \t]{0,8}(?:[-*+>•]|#{1,6}|[0-9]{1,3}[.)])[ \t]{1,8}")
_END = re.compile(r"[.!?][\"'”’)]{0,2}(?=\s)")
_REFUSAL = re.compile(
    r"\W{0,8}(?:(?:i['’]?m|i am) (?:very |really )?sorry|sorry|apologies|i apologi[sz]e|"
    r"(?:unfortunately,? )?i (?:can(?:no|['’])t|can not|am (?:un|not )able to|won['’]t|will not|must decline)|"
    r"(?:i['’]?m|i am) (?:unable|not able) to|as an ai\b)",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "`": "`", "«": "»"}


def binary_list(text: str, count: int) -> list[int] | None:
    """The last list of zeros and ones, if it has `count` of them."""
    return digit_list(text, count, highest=1)


def digit_list(text: str, count: int = 1, *, highest: int = 9) -> list[int] | None:
    """The last flat list of whole numbers from 0 to `highest`, if it has `count` of them."""
    found = _last_list(text, {str(number): number for number in range(highest + 1)})
    return found if found is not None and len(found) == count else None


def choice(text: str, options: Sequence[str]) -> str | None:
    """The option that a reply names: in the last list of one, or as the only one that stands in it as a word."""
    listed = _last_list(text, {option: index for index, option in enumerate(options)})
    if listed is not None:
        return options[listed[0]] if len(listed) == 1 else None
    words = set(re.findall(r"\w+", text))
    named = [option for option in options if option in words]
    return named[0] if len(named) == 1 else None


def sentence(text: str) -> str | None:
    """The description that a reply gives, in one line, without its label, quotes and mark-up; None if there is none."""
    text = _said(text)
    if refused(text):
        return None
    lines = text.splitlines()
    labelled = [(number, found.end()) for number, line in enumerate(lines) if (found := _LABEL.match(line))]
    if labelled:
        number, end = labelled[-1]
        lines = [lines[number][end:], *lines[number + 1 :]]
    one = _bare(" ".join(_paragraph(lines)))
    one = bounded(visible(one if len(one) <= LONGEST_SENTENCE else _shortened(one)), LONGEST_SENTENCE)
    return one if any(each.isalnum() for each in one) and not refused(one) else None


def refused(text: str) -> bool:
    """Whether a reply says that there will be none."""
    return _REFUSAL.match(_said(text)) is not None


# -- parts ------------------------------------------------------------------------------------------------------------


def _last_list(text: str, meanings: dict[str, int]) -> list[int] | None:
    last = None
    for found in _BRACKETS.finditer(text):
        items = [item.strip() for item in found[1].split(",")] if len(found[1]) < 10_000 else []
        if items and all(item in meanings for item in items):
            last = found, items
    if last is None:
        return None
    found, items = last
    before, behind = text[: found.start()].rstrip(), text[found.end() :].lstrip()
    beside = before.endswith(",") and before[:-1].rstrip().endswith("]")
    if beside or before.endswith("[") != behind.startswith("]") or (behind.startswith(",") and before.endswith("[")):
        return None  # one of several lists in a list: nobody knows which is meant
    return [meanings[item] for item in items]


def _said(text: str) -> str:
    """A reply without what was thought aloud before it."""
    _, closed, behind = text.rpartition("</think>")
    if closed:
        return behind.strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def _paragraph(lines: Sequence[str]) -> list[str]:
    """The first lines that belong together, without what only announces them."""
    found: list[str] = []
    for line in lines:
        bare = _BULLET.sub("", line, count=1).strip() if _BULLET.match(line) else line.strip()
        if not bare or bare.startswith("```"):
            if found:
                break
        elif found and _BULLET.match(line):
            break
        elif found or not bare.rstrip("*_ ").endswith(":"):
            found.append(bare)
    return found


def _bare(text: str) -> str:
    text = text.replace("**", "").strip()
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and not _within(text):
        text = text[1:-1].strip()
    return text


def _within(text: str) -> bool:
    """Whether the first quotation ends before the end."""
    return text[0] in text[1:-1] or _QUOTES[text[0]] in text[1:-1]


def _shortened(text: str) -> str:
    ends = [found.end() for found in _END.finditer(text, 0, LONGEST_SENTENCE)]
    return text[: ends[-1]] if ends else text[: LONGEST_SENTENCE - 2].rstrip() + " " + ELLIPSIS
