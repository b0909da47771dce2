"""Stand-ins for what is downloaded otherwise: a tokenizer, contexts and sentences, for measuring and for nothing else.

Invariant: made on the spot, the same each time.
"""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nlrewrite.language import template
from nlrewrite.seeds import generator

TEXT = """
The harbour was empty when the storm reached the outer wall. She put the letter on the kitchen table and went out to
look for him, but there was no one on the long road over the water. In March the first people came down the side of the
hill; more than two hundred of them would find work here. What could they do with their time, he said, if all the others
were told about it now? Many things have been made by hand, and some of these are like the ones that each day brings.
"""
WORDS = TEXT.split()
SUBJECTS = ("verbs of motion", "names of months", "closing brackets", "words for weather", "numbers written out")
PLACES = ("at the start of a line", "after a comma", "in dates", "in headlines", "inside quoted speech")


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pieces learnt from the templates' own words, digits alone, as large language models have them."""
    table = Tokenizer(models.BPE())
    table.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    table.decoder = decoders.ByteLevel()
    texts = [template.text_of(name) for name in template.names()] + [TEXT] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    table.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=table, bos_token="<|end|>", eos_token="<|end|>")


def contexts(count: int, length: int = 32) -> list[list[bytes]]:
    rng = generator(0, "contexts")
    return [[f" {WORDS[each]}".encode() for each in rng.integers(0, len(WORDS), length)] for _ in range(count)]


def sentences(count: int) -> list[str]:
    rng = generator(0, "sentences")
    pairs = zip(rng.integers(0, len(SUBJECTS), count), rng.integers(0, len(PLACES), count), strict=True)
    return [f"Number {at}: {SUBJECTS[first]}, {PLACES[second]}." for at, (first, second) in enumerate(pairs)]
