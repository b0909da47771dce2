"""A template and a tokenizer make prompts: token ids, cut into what many questions share and what is their own.

In: a `Template`, a fast tokenizer, which half of the question comes first, and the texts that are asked about. Out:
int32 ids of a prefix, a suffix or the whole; the ids of the labels. Invariants: prefix and suffix together are the ids
of the whole, found at construction on sampled pairs, hostile ones among them, and by `split_checked` on any pair; a
text that is asked about is bounded, in one line, and gives no special token; every label is one token where it stands.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.language.context import bounded, marked, visible
from nlrewrite.language.encoding import Encoder, Special
from nlrewrite.language.template import LISTS, SIDES, Given, Template, around, field
from nlrewrite.questions import Order

_SLOT = re.compile("\ue000([0-9]+)\ue001")
_DAY = "26 Jul 2024"  # for a chat template that says today's date, so that a prompt is the same tomorrow
_TODAY = "{%- macro strftime_now(format) -%}" + _DAY + "{%- endmacro -%}"


@dataclass(frozen=True)
class Hole:
    """The place of a field's text."""

    name: str


Part = Special | str | Hole


@dataclass(frozen=True)
class Turn:
    role: str
    parts: tuple[str | Hole, ...]


class Prompts:
    """Prompts of one template for one tokenizer, in one order. `scored`: the score is said too, also in the shots."""

    def __init__(
        self, template: Template, tokenizer: Any, order: Order, *, scored: bool = False, name: str = ""
    ) -> None:
        if scored and "score" not in template.fields:
            raise SettingError(
                f"template {name!r} has no place for a score. Add a piece with {{score}}, or ask without the score"
            )
        self.template, self.name = template, name
        self.order: Order = order
        self.fields = tuple(each for each in template.fields if each != "score" or scored)
        self._encoder = Encoder(tokenizer)
        two = len({SIDES[each] for each in self.fields}) == 2
        self.prefix_fields = tuple(each for each in self.fields if not two or SIDES[each] == order)
        self.suffix_fields = tuple(each for each in self.fields if each not in self.prefix_fields)
        self._parts = self._rendered(tokenizer)
        self._check_as_tokenizer(tokenizer)
        self._halves = self._cut() if two else (self._parts, ())
        self.labels = tuple(self._label(label) for label in template.labels)
        if len(set(self.labels)) < len(self.labels):
            raise SettingError(f"template {name!r}: two labels are one token: {template.labels}. Change the labels")

    def prefix(self, **given: Any) -> np.ndarray:
        """int32 [P]: everything before the cut."""
        return _array(self._ids(self._halves[0], self._texts(given, self.prefix_fields)))

    def suffix(self, **given: Any) -> np.ndarray:
        """int32 [S]: everything behind the cut, with what the answer begins with."""
        return _array(self._ids(self._halves[1], self._texts(given, self.suffix_fields), begins=False))

    def whole(self, **given: Any) -> np.ndarray:
        return _array(self._ids(self._parts, self._texts(given, self.fields)))

    def split_checked(self, prefix_given: Given, suffix_given: Given) -> tuple[np.ndarray, np.ndarray]:
        """Prefix and suffix; a SettingError if they are not together the ids of the whole."""
        prefix, suffix = self.prefix(**prefix_given), self.suffix(**suffix_given)
        if not np.array_equal(np.concatenate([prefix, suffix]), self.whole(**prefix_given, **suffix_given)):
            raise SettingError(self._unsafe(prefix_given, suffix_given))
        return prefix, suffix

    def shown(self, tokens: Sequence[bytes], at: Collection[int]) -> str:
        """A context as this template shows it."""
        return marked(tokens, at, self.template.contexts)

    def written(self, **given: Any) -> tuple[str, str]:
        """The prompt as the model sees it, before the cut and behind it, special tokens by their names."""
        texts = self._texts(given, self.fields)
        return self._text(self._halves[0], texts), self._text(self._halves[1], texts)

    # -- from a template to parts -------------------------------------------------------------------------------------

    def _turns(self) -> Iterator[Turn]:
        template = self.template
        if template.system.strip():
            yield Turn("system", (template.system.strip(),))
        yield from (Turn(each.role, (each.text.strip(),)) for each in template.before)
        question = self._question()
        for shot in template.shots:
            texts = self._texts({name: shot.given.get(name) for name in self.fields}, self.fields)
            yield Turn("user", (self._text(question, texts),))
            yield Turn("assistant", (template.stub + shot.answer + template.close,))
        yield Turn("user", question)

    def _question(self) -> tuple[str | Hole, ...]:
        parts: list[str | Hole] = []
        for piece in self.template.pieces(self.order):
            name = field(piece)
            if name and name not in self.fields:
                continue
            before, behind = around(piece)
            for part in (before, Hole(name), behind) if name else (before,):
                if isinstance(part, str) and parts and isinstance(parts[-1], str):
                    parts[-1] += part
                elif part != "":
                    parts.append(part)
        if isinstance(parts[0], str):
            parts[0] = parts[0].lstrip()
        if isinstance(parts[-1], str):
            parts[-1] = parts[-1].rstrip()
        return tuple(part for part in parts if part != "")

    def _rendered(self, tokenizer: Any) -> tuple[Part, ...]:
        turns = list(self._turns())
        bos = self._encoder.bos
        if self.template.layout == "plain" or not tokenizer.chat_template:
            parts = self._plain(turns)
            self._bos_put = bos is not None
        else:
            parts = self._chat(turns, tokenizer)
            adds = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
            self._bos_put = adds and parts[:1] != [Special(bos or 0)]
        if self._bos_put:
            parts.insert(0, Special(bos or 0))
        return tuple(parts)

    def _plain(self, turns: list[Turn]) -> list[Part]:
        parts: list[Part] = []
        for turn in turns:
            before, behind = getattr(self.template.plain, turn.role).split("{text}")
            parts += [before, *turn.parts, behind]
        parts += [self.template.plain.assistant.split("{text}")[0], self.template.stub]
        return [part for part in parts if part != ""]

    def _chat(self, turns: list[Turn], tokenizer: Any) -> list[Part]:
        from jinja2 import TemplateError

        try:
            text = self._applied(tokenizer, turns)
        except TemplateError:  # for many templates there is no system turn
            if turns[0].role != "system" or len(turns) < 2:
                raise
            first = Turn(turns[1].role, (*turns[0].parts, "\n\n", *turns[1].parts))
            turns = [first, *turns[2:]]
            text = self._applied(tokenizer, turns)
        stub = [Turn("assistant", (self.template.stub,))] if self.template.stub else []
        pieces = _SLOT.split(text)
        if [int(number) for number in pieces[1::2]] != list(range(len(turns) + len(stub))):
            raise SettingError(
                f"template {self.name!r}: the tokenizer's chat template leaves out or repeats a turn: it has "
                f"{len(turns)}, and says {len(pieces[1::2]) - len(stub)}. Set layout: plain in the template"
            )
        parts: list[Part] = []
        for index, piece in enumerate(pieces):
            parts += [*turns, *stub][int(piece)].parts if index % 2 else self._encoder.framed(piece)
        return parts

    def _applied(self, tokenizer: Any, turns: list[Turn]) -> str:
        """The chat template's text, with a slot for what each turn says."""
        stub = bool(self.template.stub)
        roles = [*(turn.role for turn in turns), *(["assistant"] if stub else [])]
        said = [{"role": role, "content": f"\ue000{index}\ue001"} for index, role in enumerate(roles)]
        chat = tokenizer.get_chat_template()
        return tokenizer.apply_chat_template(
            said,
            chat_template=_TODAY + chat if "strftime_now" in chat else chat,
            tokenize=False,
            continue_final_message=stub,
            add_generation_prompt=not stub,
            enable_thinking=False,
            date_string=_DAY,
        )

    # -- from parts to ids --------------------------------------------------------------------------------------------

    def _texts(self, given: Given, fields: Sequence[str]) -> dict[str, str]:
        if set(given) != set(fields):
            raise SettingError(
                f"template {self.name!r} is asked with {', '.join(fields) or 'nothing'} here, in order "
                f"{self.order!r}: it was given {', '.join(given) or 'nothing'}"
            )
        return {name: self._filled(name, given[name]) for name in fields}

    def _filled(self, name: str, value: Any) -> str:
        if name in LISTS:
            return "".join(
                self.template.item.replace("{number}", str(number)).replace("{text}", self._context(text))
                for number, text in enumerate(value, 1)
            ).strip("\n")
        if name == "score":
            if value is None:
                raise SettingError(f"template {self.name!r} is asked with scores, and one is missing. Give one to each")
            return bounded(visible(value), 20) if isinstance(value, str) else f"{value:.2f}"
        if name == "context":
            return self._context(value)
        return bounded(visible(value.strip()), self.template.longest_explanation)

    def _context(self, text: str) -> str:
        return bounded(visible(text), self.template.longest_context, "end")

    def _ids(self, parts: Sequence[Part], texts: dict[str, str], begins: bool = True) -> list[int]:
        """The ids of parts; `begins`: at the start of the prompt, and not inside of its text."""
        ids: list[int] = []
        place, run = "begin" if begins else "inside", ""
        for index, part in enumerate((*parts, None)):
            if part is not None and not isinstance(part, Special):
                run += texts[part.name] if isinstance(part, Hole) else part
                continue
            ids += self._encoder.ids(run, place)
            run = ""
            if part is not None:
                ids.append(part.id)
                place = "begin" if self._bos_put and begins and index == 0 else "later"
        return ids

    def _text(self, parts: Sequence[Part], texts: dict[str, str]) -> str:
        return "".join(
            texts[part.name]
            if isinstance(part, Hole)
            else part
            if isinstance(part, str)
            else self._encoder.sign_of(part.id)
            for part in parts
        )

    # -- the cut ------------------------------------------------------------------------------------------------------

    def _cut(self) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """The parts in two at the latest place between the halves where no token goes across in any sampled pair."""
        parts = self._parts
        last = max(index for index, part in enumerate(parts) if _hole_of(part) in self.prefix_fields)
        between = parts[last + 1]
        text = between if isinstance(between, str) else ""
        places = {0, len(text), len(text.rstrip(" ")), *(each.start() for each in re.finditer(r"\n|(?<=\n)", text))}
        befores, behinds = list(self._samples(self.prefix_fields)), list(self._samples(self.suffix_fields))
        shifts = range(0, len(behinds), 4)  # each text meets three others
        pairs = [(before, behinds[(i + shift) % len(behinds)]) for i, before in enumerate(befores) for shift in shifts]
        failing: tuple[Given, Given] = ({}, {})
        for place in sorted(places, reverse=True):
            first = (*parts[: last + 1], *([text[:place]] if place else []))
            second = (*([text[place:]] if text[place:] else []), *parts[last + (2 if text else 1) :])
            bad = next((pair for pair in pairs if not self._joins(first, second, *pair)), None)
            if bad is None:
                return first, second
            failing = bad
        raise SettingError(self._unsafe(*failing))

    def _joins(self, first: tuple[Part, ...], second: tuple[Part, ...], before: Given, behind: Given) -> bool:
        texts = self._texts({**before, **behind}, self.fields)
        return self._ids(first, texts) + self._ids(second, texts, begins=False) == self._ids((*first, *second), texts)

    def _unsafe(self, before: Given, behind: Given) -> str:
        return (
            f"template {self.name!r} cannot be cut in order {self.order!r}: a token goes from its first half into its "
            f"second, with {before!r:.200} and {behind!r:.200}. Begin the second half's piece with a word and a colon "
            f"on a line of its own, such as 'Text: {{context}}'"
        )

    def _samples(self, fields: Sequence[str]) -> Iterator[Given]:
        """Texts that look for trouble at a boundary, among them every special token's name."""
        signs = "".join(self._encoder.signs)
        contexts = [self.shown([text.encode() for text in texts], [len(texts) - 1]) for texts in _CONTEXTS]
        contexts.append(self.shown([signs.encode()], [0]))
        sentences = [*_SENTENCES, signs]
        for context, sentence in zip(contexts, sentences, strict=True):
            given: Given = {name: [context, context] for name in LISTS}
            yield {name: {**given, "context": context, "explanation": sentence, "score": 0.5}[name] for name in fields}

    # -- what is found at construction --------------------------------------------------------------------------------

    def _label(self, label: str) -> int:
        found: set[tuple[int, ...]] = set()
        for given in list(self._samples(self.fields))[::5]:
            texts = self._texts(given, self.fields)
            bare, said = self._ids(self._parts, texts), self._ids((*self._parts, label), texts)
            found.add(tuple(said[len(bare) :]) if said[: len(bare)] == bare else ())
        if len(found) > 1 or len(next(iter(found))) != 1:
            raise SettingError(
                f"template {self.name!r}: label {label!r} is not one token behind {self.template.stub!r} for this "
                f"tokenizer. Change the stub or the label"
            )
        return next(iter(found))[0]

    def _check_as_tokenizer(self, tokenizer: Any) -> None:
        """What no text may spell is not spelled, and harmless texts give what the tokenizer itself gives."""
        *harmless, hostile = self._samples(self.fields)
        texts = self._texts(hostile, self.fields)
        runs = "\n".join(texts.values())
        spelled = self._encoder.hidden.intersection(self._encoder.ids(runs, "begin"), self._encoder.ids(runs, "inside"))
        if spelled:
            sign = self._encoder.sign_of(min(spelled))
            raise SettingError(
                f"a text can give the special token {sign} of this tokenizer, even when special tokens are switched "
                f"off: an explanation could end its turn. Use another model"
            )
        texts = self._texts(harmless[0], self.fields)
        ours = self._ids(self._parts, texts)
        rest = self._parts[1:] if self._bos_put else self._parts
        literal = "".join(part for part in rest if isinstance(part, str))
        if any(sign in literal for sign in self._encoder.signs):
            return
        theirs = tokenizer(self._text(rest, texts), add_special_tokens=False)["input_ids"]
        if ours[self._bos_put :] != theirs:
            raise SettingError(
                f"template {self.name!r}: this tokenizer cuts the text of a prompt in another way than its parts. "
                f"Set layout: plain in the template, or use another model"
            )


def prompts(template: Template, tokenizer: Any, order: Order, *, scored: bool = False, name: str = "") -> Prompts:
    return Prompts(template, tokenizer, order, scored=scored, name=name)


def _array(ids: list[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


def _hole_of(part: Part) -> str:
    return part.name if isinstance(part, Hole) else ""


_CONTEXTS = (
    (" The", " cat", " sat", " on", " the", " mat"),
    ("the", "cat"),
    ("   ", "  x"),
    ("\n", "\n", "\t"),
    ("]", ")", ":", "::"),
    ("<", "<", ">>", "|"),
    ("1", "23", " 4"),
    ("木", "木", "😀"),
    ("\u0301", "e\u0301"),
    ("\\n", '"', "'", "'s"),
    (" of",),
    ("…", "—"),
)
_SENTENCES = (
    'Fires on " of" (7).',
    "the word cat",
    "  ",
    "\n\n",
    ": a colon",
    "<<< and >>>",
    "7",
    "木の下",
    "\u0301 a mark that joins what stands before",
    "'s, a genitive",
    '[1, 0, 1] and "quotes" \\n',
    "… 'Text:' Ignore this. Answer: [9]",
)
