"""What the command line says of a coder, and what it writes of one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nlrewrite import cli
from nlrewrite.artifacts import Store
from nlrewrite.coders import form, formats, record, showing
from nlrewrite.coders.formats import About
from nlrewrite.coders.record import Record
from nlrewrite.errors import CorruptArtifact, SettingError
from nlrewrite.specs import Site
from tests.coders import small_training
from tests.coders.formats import dense, pickles

KNOWN = Record(
    kind="transcoder", format="nlrewrite", source="trained", site=Site(layer=3), model="a-model", fvu=0.25, tokens=7
)


def coder(activation: Any = "topk", skip: bool = False) -> form.Coder:
    w = pickles.drawn(0, enc=(12, 6), b=(12,), dec=(12, 6), out=(6,), skip=(6, 6))
    threshold = torch.full((12,), 0.3) if activation == "jumprelu" else None
    return form.Coder(w["enc"], w["b"], w["dec"], w["out"], w["skip"] if skip else None, 3, activation, threshold)


def own(folder: Path, made: form.Coder, known: Record | None = KNOWN) -> Path:
    folder.mkdir()
    form.save(made, folder)
    if known is not None:
        record.write(known, folder)
    return folder


@pytest.mark.parametrize(
    ("activation", "skip", "format"),
    [
        ("topk", False, "sparsify"),
        ("topk", True, "sparsify"),
        ("relu", False, "saelens"),
        ("jumprelu", True, "saelens"),
    ],
)
def test_a_coder_converted_writes_what_it_wrote_and_keeps_its_record(
    activation: Any, skip: bool, format: str, tmp_path: Path
) -> None:
    place = own(tmp_path / "own", coder(activation, skip))
    told = showing.convert(showing.opened(place), tmp_path / "theirs", format)
    assert told["format"] == format and all(Path(each).is_file() for each in told["files"])
    again = showing.opened(tmp_path / "theirs")
    x_ND = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(dense.written(again.coder, x_ND), dense.written(coder(activation, skip), x_ND))
    assert again.record == KNOWN and again.format == format


def test_facts_are_what_files_and_record_say(tmp_path: Path) -> None:
    known = showing.facts(showing.opened(own(tmp_path / "own", coder())))
    assert (known["format"], known["latents"], known["k"], known["reads"], known["layer"]) == ("nlrewrite", 12, 3, 6, 3)
    assert known["record"]["fvu"] == 0.25 and known["kind"] == "transcoder"
    shown = dict(showing.rows(known))
    assert shown["record.fvu"] == "0.25" and shown["record.site"] == '{"kind": "mlp", "layer": 3}'
    assert "hook_in" not in shown, "what nobody says is left out"
    assert showing.facts(showing.opened(own(tmp_path / "bare", coder(), None)))["record"] is None
    (tmp_path / "bare" / form.CONFIG).unlink()
    with pytest.raises(CorruptArtifact, match=r"has coder\.safetensors and no coder\.json"):
        showing.opened(tmp_path / "bare")


def test_an_artifact_that_is_no_coder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"subject/\w+ is no coder"):
        showing.opened(small_training.inputs(tmp_path)["subject"])


def run(*arguments: str) -> int:
    return cli.main(["coder", *arguments])


def test_the_command_shows_and_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(str(tmp_path / "store"))
    artifact = small_training.folder(store, "coder", lambda out: (form.save(coder(), out), record.write(KNOWN, out)))
    name = str(artifact.manifest.artifact)
    assert run("show", name[:10], "--json") == 0
    assert json.loads(capsys.readouterr().out)["record"]["model"] == "a-model"
    assert run("convert", name, "theirs", "--format", "sparsify", "--json") == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [Path(each).name for each in files] == ["cfg.json", "record.json", "sae.safetensors"]
    assert formats.load(tmp_path / "theirs").coder.k == 3
    assert run("show", "theirs") == 0
    assert "| format " in (table := capsys.readouterr().out) and "sparsify" in table
    assert run("convert", "theirs", "elsewhere", "--format", "saelens") == 2
    assert "no TopK transcoder" in capsys.readouterr().err
    assert run("show", "theirs", "--from", "openai") == 2
    assert run("show", "missing") == 6
    other = str(small_training.inputs(tmp_path / "store")["subject"].manifest.artifact)
    capsys.readouterr()
    assert run("show", other) == 2
    assert f"{other} is no coder. Name one as coder/<digest>" in capsys.readouterr().err
    (tmp_path / "theirs" / "sae.safetensors").write_bytes(b"cut")
    assert run("show", "theirs") == 5
    assert "theirs/sae.safetensors" in capsys.readouterr().err


def test_a_conversion_does_not_write_over_a_coder(tmp_path: Path) -> None:
    formats.save(coder(), tmp_path / "there", "sparsify", About())
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="is a file, and a coder is written as a folder"):
        showing.convert(showing.opened(own(tmp_path / "plain", coder())), tmp_path / "file", "saelens")
    with pytest.raises(SettingError, match="holds a coder already"):
        showing.convert(showing.opened(own(tmp_path / "own", coder())), tmp_path / "there", "saelens")
