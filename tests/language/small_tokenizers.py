"""Small tokenizers of the families that matter, made on the spot."""

import json
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    'the cat sat on the mat, and the dog of the house said "no".\n\nText: Description: Score: Answer: [0, 1]\n',
    "def area(radius):\n    return 3.14 * radius\n\nFires on the word, stronger within 3 tokens after a number.\n",
    "user assistant system <<the marked token>> and what stands before it: 0 1 2 3 4 5 6 7 8 9\n",
] * 3
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)


@cache
def byte_level(vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """As GPT-2's, and as those of the subjects that are trained here; no chat template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    _train(made, vocabulary, ["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@cache
def llama3(vocabulary: int = 500) -> PreTrainedTokenizerFast:
    """Its way to split, a beginning-of-text token that it adds by itself, and a chat template that writes one too."""
    made = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    begin = "<|begin_of_text|>"
    _train(made, vocabulary, [begin, "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"])
    made.post_processor = processors.TemplateProcessing(
        f"{begin} $A", special_tokens=[(begin, made.token_to_id(begin))]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=begin, eos_token="<|eot_id|>")
    wrapped.chat_template = LLAMA_CHAT
    return wrapped


@cache
def qwen(vocabulary: int = 500) -> PreTrainedTokenizerFast:
    """Composes characters, has no beginning-of-text token, and knows signs that are added and not special."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    _train(made, vocabulary, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    made.add_tokens([AddedToken("    ", special=False)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    wrapped.chat_template = CHATML
    return wrapped


@cache
def sentence_piece(vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """Spaces as signs, a space before the first word alone, bytes for what it does not know; no system turn."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    _train(made, vocabulary + 256, ["<unk>", "<s>", "</s>", "<turn>", "<end>", *fallback], alphabet=False)
    described = json.loads(made.to_str())
    described["added_tokens"] = [each for each in described["added_tokens"] if each["content"] not in fallback]
    made = Tokenizer.from_str(json.dumps(described))
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = NO_SYSTEM
    return wrapped


@cache
def llama2() -> PreTrainedTokenizerFast:
    """As `sentence_piece`, in the older way: a sign for a space is put before every text between special tokens."""
    described = json.loads(sentence_piece().backend_tokenizer.to_str())
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    described["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    described["pre_tokenizer"] = None
    made = Tokenizer.from_str(json.dumps(described))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = NO_SYSTEM
    return wrapped


def _train(made: Tokenizer, vocabulary: int, special: list[str], alphabet: bool = True) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        show_progress=False,
    )
    made.train_from_iterator(TEXT, trainer)
