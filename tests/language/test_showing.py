"""Templates on the command line."""

import json
from pathlib import Path

import pytest

from nlrewrite.cli import main
from nlrewrite.language.showing import CUT
from nlrewrite.language.template import names, text_of
from tests.language.small_tokenizers import llama3


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["prompts", *arguments]) == 0
    return capsys.readouterr().out


def test_the_list_has_ours_and_the_users_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert all(name in said(capsys) for name in names())
    (tmp_path / "mine.yaml").write_text(text_of("reader").replace("about: The", "about: My own, the"))
    listed = json.loads(said(capsys, "--template-folder", str(tmp_path), "--json"))
    assert listed["mine"].startswith("My own")
    assert set(listed) == {"mine", *names()}


def test_one_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "simulate") == text_of("simulate") + "\n"


@pytest.mark.parametrize("name", names())
def test_an_example_shows_the_cut(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, name, "--example")
    halves = name not in ("explain", "explain-top", "explain-contrast", "intruder")
    assert text.count(CUT) == halves
    assert "noon" in text


def test_an_example_in_the_chat_of_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    llama3().save_pretrained(tmp_path)
    text = said(capsys, "simulate", "--example", "--scored", "--order", "explanation", "--model", str(tmp_path))
    assert text.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nInside")
    before, behind = text.split(CUT)
    assert before.endswith("Score of this description, from 0 to 1: 0.75\nText:")
    assert behind == "  The harbour lay still at<< noon>><|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[\n"


def test_what_is_not_there_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["prompts", "none"]) == 2
    assert main(["prompts", "simulate", "--example", "--model", str(tmp_path)]) == 2
    assert "tokenizer.json" in capsys.readouterr().err
