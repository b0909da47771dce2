"""Templates as a person looks at them: the list, and one question as a model would see it.

In: a template, and the folder of a model if there is one. Out: text. Invariant: what is shown is what is asked, made by
the same code; only the texts that it asks about are made up here.
"""

from pathlib import Path
from typing import Any

from nlrewrite.errors import SettingError
from nlrewrite.language.context import marked
from nlrewrite.language.template import LISTS, Template, names, read, text_of
from nlrewrite.questions import Order

CUT = "✂"
TOKENS = (b" The", b" harbour", b" lay", b" still", b" at", b" noon")
SENTENCE = 'Fires on " noon" (8), " midnight" (7). Stronger right after " at" (+1).'


def listed(folder: str | None) -> list[tuple[str, str]]:
    """Names and what they ask: the user's own, then those of ours that they do not hide."""
    own = sorted(path.stem for path in Path(folder).glob("*.yaml")) if folder else []
    return [(name, read(text_of(name, folder), name).about) for name in dict.fromkeys([*own, *names()])]


def example(template: Template, name: str, order: Order, model: str | None, scored: bool) -> str:
    """A question with the place of its cut; special tokens are those of the model, where a folder is given."""
    from nlrewrite.language.prompts import prompts

    made = prompts(template, tokenizer(model) if model else plain_tokenizer(), order, scored=scored, name=name)
    context = marked(TOKENS, {len(TOKENS) - 1}, template.contexts)
    given: dict[str, Any] = {"context": context, "explanation": SENTENCE, "score": 0.75}
    given |= {each: [context, marked(TOKENS[2:], {1}, template.contexts)] for each in LISTS}
    before, behind = made.written(**{each: given[each] for each in made.fields})
    return f"{before}{CUT}{behind}" if behind else before


def tokenizer(model: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    if not (Path(model) / "tokenizer.json").is_file():
        raise SettingError(f"there is no tokenizer.json in {model}. Name the folder of a model with a fast tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(model)


def plain_tokenizer() -> Any:
    """Every byte is a token, and there is no chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=made)
