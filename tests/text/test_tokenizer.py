import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.text.tokenizer import end_of_text, load_tokenizer, token_texts


@given(text=st.text(max_size=60))
@example(text="one<|endoftext|>two")
def test_the_bytes_of_a_texts_tokens_are_the_texts(subject_folder: Folder, text: str) -> None:
    folder = subject_folder.root()
    texts = token_texts(folder)
    ids = load_tokenizer(folder).encode(text, add_special_tokens=False).ids
    assert b"".join(texts[number] for number in ids) == text.encode()
    assert end_of_text(folder) not in ids


def test_every_byte_is_a_token_of_a_byte_level_tokenizer(subject_folder: Folder) -> None:
    texts = token_texts(subject_folder.root())
    assert {bytes([byte]) for byte in range(256)} <= set(texts)
    assert texts[end_of_text(subject_folder.root())] == b"<|endoftext|>"
    assert texts == token_texts(subject_folder.path("tokenizer.json"))


def sentence_pieces(folder: Path) -> None:
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "<0xC3>": 3, "<0xA9>": 4, "▁": 5, "▁a": 6, "a": 7, "caf": 8}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])  # pyright: ignore
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("ab")])
    tokenizer.save(str(folder / "tokenizer.json"))


def test_pieces_of_other_tokenizers_are_text_and_fallback_bytes(tmp_path: Path) -> None:
    sentence_pieces(tmp_path)
    expected = [b"<s>", b"</s>", b"<unk>", b"\xc3", b"\xa9", b" ", b" a", b"a", b"caf", b"ab"]
    assert token_texts(tmp_path) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, 0),
        ({"bos_token": None, "eos_token": "</s>"}, 1),
        ({"bos_token": {"content": "</s>", "lstrip": False}}, 1),
        ({"bos_token": "<not there>", "eos_token": {"content": "<s>"}}, 0),
    ],
)
def test_the_beginning_of_text_stands_before_a_document_or_else_the_end(
    tmp_path: Path, settings: dict, expected: int
) -> None:
    sentence_pieces(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(settings))
    assert end_of_text(tmp_path) == expected
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<unk>"}))
    assert end_of_text(tmp_path) == 2


def test_a_tokenizer_without_such_a_token_is_refused(tmp_path: Path) -> None:
    sentence_pieces(tmp_path)
    with pytest.raises(SettingError, match="neither bos_token nor eos_token"):
        end_of_text(tmp_path)


def test_a_loaded_tokenizer_neither_cuts_nor_pads(tmp_path: Path) -> None:
    sentence_pieces(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9, pad_token="<s>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path).encode("a a a a", add_special_tokens=False).ids) == 4


def test_a_tokenizer_in_the_older_two_files_is_read_too(tmp_path: Path, subject_folder: Folder) -> None:
    model = json.loads(subject_folder.path("tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    text = "the cat reads a café"
    expected = load_tokenizer(subject_folder.root()).encode(text, add_special_tokens=False).ids
    assert load_tokenizer(tmp_path).encode(text, add_special_tokens=False).ids == expected
    assert token_texts(tmp_path) == token_texts(subject_folder.root())
