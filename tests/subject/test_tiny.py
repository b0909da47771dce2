import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.specs import TinySubject
from nlrewrite.steps import Running
from nlrewrite.subject import load, tiny

SPEC = TinySubject(layers=1, width=32, vocabulary=300, context=32, batch=4, steps=24)
TEXTS = [f"document {n}: the cat sat on the mat and the dog lay on the log, {n} times. " * 6 for n in range(20)]
HELD_OUT = [f"document {n}: the dog sat on the log and the cat lay on the mat, {n} times. " * 6 for n in range(30, 33)]
RUNNING = Running(Execution(), Progress())


def train(out: Path, spec: TinySubject = SPEC, texts=TEXTS, held_out=HELD_OUT) -> dict:
    out.mkdir()
    tiny.train(spec, texts, held_out, out, RUNNING)
    return json.loads((out / "training.json").read_text())


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "one"
    train(out)
    return out


def test_two_trainings_give_the_same_files_and_touch_no_global_generator(trained: Path, tmp_path: Path, capfd) -> None:
    torch.manual_seed(1)
    before, numbers = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    train(tmp_path / "two")
    assert hashes(tmp_path / "two") == hashes(trained)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.random.get_state()[1].tolist() == numbers  # noqa: NPY002
    said = capfd.readouterr()
    assert said.out + said.err == ""


@pytest.mark.parametrize("fields", [{"seed": 1}, {"steps": 25}, {"learning_rate": 1e-3}])
def test_other_settings_give_other_weights(trained: Path, tmp_path: Path, fields: dict) -> None:
    train(tmp_path / "other", SPEC.model_copy(update=fields))
    first, other = hashes(trained), hashes(tmp_path / "other")
    assert first["model.safetensors"] != other["model.safetensors"]
    assert first["tokenizer.json"] == other["tokenizer.json"]


def test_nothing_is_fitted_on_held_out_text(trained: Path, tmp_path: Path) -> None:
    """Other held-out text is measured differently, and changes no other file."""
    train(tmp_path / "other", held_out=["Wholly unlike: 木 zebra xylophone 99999! " * 30])
    first, other = hashes(trained), hashes(tmp_path / "other")
    assert first.pop("training.json") != other.pop("training.json")
    assert first == other


def test_another_text_changes_tokenizer_and_weights(trained: Path, tmp_path: Path) -> None:
    train(tmp_path / "other", texts=[text.replace("cat", "whale") for text in TEXTS])
    first, other = hashes(trained), hashes(tmp_path / "other")
    assert first["tokenizer.json"] != other["tokenizer.json"]
    assert first["model.safetensors"] != other["model.safetensors"]


def test_checkpoints_are_log_spaced_and_every_tenth_and_the_last_is_the_model(trained: Path) -> None:
    steps = [int(path.stem.removeprefix("step-")) for path in sorted((trained / "checkpoints").iterdir())]
    assert steps == [0, 1, 2, 4, 5, 7, 8, 10, 12, 14, 16, 17, 19, 22, 24]
    last, model = load_file(trained / "checkpoints" / "step-00000024.safetensors"), load.model(trained, Execution())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, last[name])
    first = load_file(trained / "checkpoints" / "step-00000000.safetensors")
    assert any(not torch.equal(first[name], last[name]) for name in last)
    assert tiny.checkpoint_steps(1) == {0, 1}
    assert tiny.checkpoint_steps(10) == {*range(11)}
    assert tiny.checkpoint_steps(1500) == {0, *(2**power for power in range(11)), *range(150, 1501, 150)}


def test_training_lowers_the_held_out_loss_and_says_so(trained: Path) -> None:
    summary = json.loads((trained / "training.json").read_text())
    assert [point["step"] for point in summary["curve"]] == [0, 1, 2, 4, 5, 7, 8, 10, 12, 14, 16, 17, 19, 22, 24]
    assert summary["curve"][0]["held_out"] == pytest.approx(math.log(300), abs=0.2)
    assert summary["held_out_loss"] == summary["curve"][-1]["held_out"] < summary["curve"][0]["held_out"] - 0.5
    assert summary["curve"][0]["train"] is None
    assert summary["tokens_seen"] == 24 * 4 * 32
    model = load.model(trained, Execution())
    assert summary["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    tokenizer = tiny.train_tokenizer(TEXTS, 300)
    stream = tiny.token_stream(tokenizer, HELD_OUT)
    assert summary["held_out_loss"] == pytest.approx(tiny.mean_loss(model, stream, SPEC), abs=1e-4)
    assert summary["train_tokens"] == len(tiny.token_stream(tokenizer, TEXTS))


def test_a_stream_is_every_text_after_an_end_of_text() -> None:
    tokenizer = tiny.train_tokenizer(TEXTS, 300)
    end = tokenizer.token_to_id(tiny.END_OF_TEXT)
    stream = tiny.token_stream(tokenizer, ["the cat", "the dog"])
    pieces = [part.tolist() for part in np.split(stream, np.flatnonzero(stream == end))[1:]]
    assert [tokenizer.decode(piece[1:]) for piece in pieces] == ["the cat", "the dog"]
    assert len(tiny.token_stream(tokenizer, [])) == 0


def test_the_unigram_loss_in_closed_form() -> None:
    train_N, held_out_N = np.array([0] * 7 + [1] * 2), np.array([0, 1, 2])
    expected = -(math.log(8 / 12) + math.log(3 / 12) + math.log(1 / 12)) / 3
    assert tiny.unigram_loss(train_N, held_out_N, 3) == pytest.approx(expected)
    alike = np.repeat(np.arange(8), 1000)
    assert tiny.unigram_loss(alike, alike, 8) == pytest.approx(math.log(8))


def test_the_schedule_warms_up_and_falls_to_a_tenth() -> None:
    shares = [tiny.schedule(step, 500) for step in range(501)]
    assert shares[0] == 1 / 20
    assert shares[19] == shares[20] == 1
    assert shares[260] == pytest.approx(0.55)
    assert shares[500] == pytest.approx(0.1)
    assert all(0 < tiny.schedule(step, 5) <= 1 for step in range(5))


def test_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"too short to train on: .* Give more text or lower --set subject\.context"):
        train(tmp_path / "short", held_out=["short"])
