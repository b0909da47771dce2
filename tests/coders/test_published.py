"""Coders from elsewhere as artifacts: what they are held to, how they are fitted, and what is measured of them."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from nlrewrite.artifacts import Folder
from nlrewrite.coders import build, files, fitting, form, formats, record
from nlrewrite.coders.formats import About, folding
from nlrewrite.coding import FolderCoder, HubCoder, at_layer
from nlrewrite.errors import CorruptArtifact, SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.specs import Site
from nlrewrite.steps import Running
from nlrewrite.subject import load, sites
from nlrewrite.text.rows import rows
from tests.coders import small_training
from tests.coders.formats import dense, pickles
from tests.subject import small_hub, small_models

WIDTH, LATENTS, K = small_models.WIDTH, 24, 4
REPOSITORY, REVISION = "somebody/coders", "1" * 40


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    return small_training.inputs(tmp_path_factory.mktemp("store"), "gpt2")


def sparse_coder(seed: int = 0, skip: bool = False) -> form.Coder:
    w = pickles.drawn(seed, enc=(LATENTS, WIDTH), b=(LATENTS,), dec=(LATENTS, WIDTH), out=(WIDTH,), skip=(WIDTH, WIDTH))
    return form.Coder(w["enc"], w["b"], 0.01 * w["dec"], 0.01 * w["out"], 0.01 * w["skip"] if skip else None, K)


def kept(folder: Path, kind: Any = "transcoder", **made: Any) -> Path:
    formats.save(sparse_coder(**made), folder, "sparsify", About(kind=kind))
    return folder


def spec(**changed: Any) -> FolderCoder:
    site = Site(kind=changed.pop("site", "mlp"), layer=changed.pop("layer", 1))
    return FolderCoder(**{"site": site, "width": LATENTS, "k": K} | changed)


def made(of: FolderCoder | HubCoder, inputs: dict[str, Folder], out: Path, folder: Path | None) -> dict[str, Any]:
    out.mkdir(exist_ok=True, parents=True)
    where = Execution(coder_folder=None if folder is None else str(folder))
    build.build(of, inputs, out, Running(where, Progress()))
    return json.loads((out / "training.json").read_text())


def test_a_coder_of_a_folder_becomes_the_files_that_training_leaves(given: dict[str, Folder], tmp_path: Path) -> None:
    trained = made(spec(), given, tmp_path / "out", kept(tmp_path / "layers.1.mlp"))
    assert {each.name for each in (tmp_path / "out").iterdir()} == set(small_training.FILES)
    coder = form.load(tmp_path / "out" / form.WEIGHTS, tmp_path / "out" / form.CONFIG)
    assert torch.equal(coder.enc_LD, sparse_coder().enc_LD) and coder.k == K
    assert trained["curve"] == [] and trained["site"] == "transformer.h.1.mlp"
    assert trained["ce"].keys() >= {"original", "coder", "mean", "zero", "kl", "recovered"}
    written = record.read(tmp_path / "out")
    assert (written.kind, written.format, written.hook_in) == ("transcoder", "sparsify", "layers.1.mlp")
    assert written.source.startswith("sha256:") and len(written.source) == 71
    assert (written.fvu, written.l0, written.k, written.width) == (trained["fvu"], trained["l0"], K, LATENTS)
    assert written.measured_on == trained["tokens"] > 500


def test_what_is_measured_is_what_it_says(given: dict[str, Folder]) -> None:
    model, site = load.model(given["subject"], Execution()), Site(kind="mlp", layer=1)
    located, coder = sites.locate(model, site), sparse_coder()
    source = rows(given["tokens"], Execution(), 16)
    ids_BT = torch.from_numpy(source.read(source.held_out(320)))
    passed = sites.activations_upto(model, located, ids_BT)
    x_ND, y_NE = (each[:, 1:].flatten(0, 1) for each in (passed.x, passed.y))
    active_NL, off = dense.active(coder, x_ND) > 0, dense.written(coder, x_ND) - y_NE
    for batch_tokens in (10_000, 48):
        fit = fitting.measured(coder, model, located, ids_BT, batch_tokens)
        expected = float(off.square().sum() / (y_NE - y_NE.mean(0)).square().sum())
        assert fit.fvu == pytest.approx(expected, rel=1e-5)
        assert fit.l0 == pytest.approx(float(active_NL.sum(-1).float().mean()))
        assert fit.live_share == float(active_NL.any(0).float().mean()) and fit.tokens == len(x_ND) == 20 * 15
    shifted = sparse_coder()
    shifted.dec_bias_E = shifted.dec_bias_E + 3.0  # the same number in every channel
    plain = [fitting.measured(each, model, located, ids_BT, 10_000) for each in (coder, shifted)]
    centred = [fitting.measured(each, model, located, ids_BT, 10_000, centred=True) for each in (coder, shifted)]
    assert plain[1].fvu > 2 * plain[0].fvu and centred[1].fvu == pytest.approx(centred[0].fvu, rel=1e-4)
    assert plain[1].ce["coder"] == pytest.approx(plain[0].ce["coder"], abs=1e-5)


def test_a_transcoder_of_the_normalised_input_is_folded_into_the_subject(
    given: dict[str, Folder], tmp_path: Path
) -> None:
    path = pickles.transcoder(tmp_path, 1, WIDTH, WIDTH, LATENTS)
    trained = made(spec(k=8), given, tmp_path / "out", path)
    coder = form.load(tmp_path / "out" / form.WEIGHTS, tmp_path / "out" / form.CONFIG)
    model = load.model(given["subject"], Execution())
    located = sites.locate(model, Site(kind="mlp", layer=1))
    x_ND = sites.activations_upto(model, located, small_models.ids()).x.flatten(0, 1)
    gain_D, bias_D = folding.norm_before(model, located)
    expected = dense.active(formats.load(path).coder, (x_ND - bias_D) / gain_D)
    torch.testing.assert_close(dense.active(coder, x_ND), expected, rtol=1e-4, atol=1e-4)
    written = record.read(tmp_path / "out")
    assert (written.model, written.data, written.tokens) == ("gpt2-small", "Skylion007/openwebtext", 60_000_000)
    assert (written.hook_in, written.folded_from) == ("transformer.h.1.mlp, input", "blocks.1.ln2.hook_normalized")
    assert (
        written.centred
        and trained["tokens_seen"] == 60_000_000
        and coder.k == max(1, round(trained["l0"])) == written.k
    )


def test_what_the_spec_does_not_say_of_it_is_refused(given: dict[str, Folder], tmp_path: Path) -> None:
    folder = kept(tmp_path / "coder")
    for changed, message in [
        ({"width": 25}, rf"has {LATENTS} latents, and the spec says 25.*coder\.width={LATENTS}"),
        ({"k": 5}, rf"keeps the {K} largest latents, and the spec says 5.*coder\.k={K}"),
        ({"layer": 7}, r"layers 0 to 2: coder\.site\.layer=7"),
        ({"content": "0" * 64}, "are not those whose sha256 begins with 0000000000000000"),
        ({"format": "openai"}, "is not of the format openai"),
        ({"path": "elsewhere"}, "there is no .*elsewhere"),
    ]:
        with pytest.raises((SettingError, Unreachable), match=message):
            made(spec(**changed), given, tmp_path / "out", folder)
    wide = form.Coder(*(torch.ones(shape) for shape in ((LATENTS, 40), (LATENTS,), (LATENTS, 40), (40,))), None, K)
    formats.save(wide, tmp_path / "wide", "sparsify", About(kind="transcoder"))
    with pytest.raises(SettingError, match=r"reads 40 numbers and writes 40.*transformer\.h\.1\.mlp.* has 32 and 32"):
        made(spec(), given, tmp_path / "out", tmp_path / "wide")
    with pytest.raises(SettingError, match="no folder is given"):
        made(spec(), given, tmp_path / "out", None)


def test_coders_of_all_layers_are_named_by_one_content(given: dict[str, Folder], tmp_path: Path) -> None:
    for layer in range(3):
        kept(tmp_path / f"layers.{layer}.mlp", seed=layer)
    root = Execution(coder_folder=str(tmp_path))
    every = files.identified(spec(path="layers.{layer}.mlp"), root)
    for layer in (0, 2):
        made(at_layer(every, layer), given, tmp_path / f"out{layer}", tmp_path)
        coder = form.load(tmp_path / f"out{layer}" / form.WEIGHTS, tmp_path / f"out{layer}" / form.CONFIG)
        assert torch.equal(coder.enc_LD, sparse_coder(layer).enc_LD)
    kept(tmp_path / "layers.9.mlp")
    with pytest.raises(SettingError, match="are not those whose sha256 begins with"):
        made(at_layer(every, 1), given, tmp_path / "out", tmp_path)


def told(given: dict[str, Folder], out: Path, folder: Path, caplog: pytest.LogCaptureFixture, **changed: Any) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="nlrewrite.coders.published"):
        made(spec(**changed), given, out, folder)
    return "\n".join(each.getMessage() for each in caplog.records)


def test_a_coder_that_does_not_fit_is_built_and_said_not_to_fit(
    given: dict[str, Folder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = kept(tmp_path / "layers.1.mlp")
    assert "unexplained" not in (quiet := told(given, tmp_path / "a", good, caplog, least_explained=-30.0)), quiet
    loud = sparse_coder()
    loud.dec_LE = loud.dec_LE * 1000
    formats.save(loud, tmp_path / "loud", "sparsify", About(kind="transcoder"))
    said = told(given, tmp_path / "b", tmp_path / "loud", caplog)
    assert "of the variance at the mlp of layer 1 unexplained, more than 1: coder and site do not seem to fit" in said
    assert "name layer 1 (layers.1.mlp), and it stands at the mlp of layer 2" in told(
        given, tmp_path / "c", good, caplog, layer=2
    )
    sae = kept(tmp_path / "sae", kind="sae")
    assert "of kind sae, for a residual or mlp-output site" in told(given, tmp_path / "d", sae, caplog)
    assert "of kind sae" not in told(given, tmp_path / "e", sae, caplog, site="mlp-output")


def test_a_record_beside_the_files_is_held_against_what_is_measured(
    given: dict[str, Folder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = kept(tmp_path / "layers.1.mlp")
    fvu = made(spec(), given, tmp_path / "a", folder)["fvu"]
    right = record.Record(kind="transcoder", format="sparsify", source="x", fvu=fvu, model="a-model", tokens=7)
    record.write(right, folder)
    assert "record says" not in told(given, tmp_path / "b", folder, caplog)
    assert record.read(tmp_path / "b").model == "a-model" and record.read(tmp_path / "b").tokens == 7
    record.write(right.model_copy(update={"fvu": fvu - 0.2}), folder)
    assert f"record says FVU {fvu - 0.2:.3g}, and here it is {fvu:.3g}" in told(given, tmp_path / "c", folder, caplog)
    (folder / "record.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match="is no record of a coder: kind is wrong"):
        made(spec(), given, tmp_path / "d", folder)


def test_a_coder_of_a_repository_is_fetched_at_its_revision_and_read_from_the_cache(
    given: dict[str, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path / "repository")
    (tmp_path / "repository" / "optimizer_0.pt").write_bytes(b"not asked for")
    (tmp_path / "repository" / "README.md").write_text("not asked for")
    of = HubCoder(repo=REPOSITORY, revision=REVISION, site=Site(kind="mlp", layer=1), width=LATENTS, k=K)
    with small_hub.serving({(REPOSITORY, REVISION): tmp_path / "repository"}) as (address, asked):
        small_hub.use(monkeypatch, address, tmp_path / "cache")
        made(of, given, tmp_path / "out", None)
        assert not [each for each in asked if "optimizer" in each or "README" in each]
        with pytest.raises(Unreachable, match=rf"{REPOSITORY} at 111111111111 has no coder at layers\.3"):
            made(of.model_copy(update={"path": "layers.3"}), given, tmp_path / "out", None)
        with pytest.raises(Unreachable, match=r"has no revision 2222.*Change --set coder\.revision"):
            made(of.model_copy(update={"revision": "2" * 40}), given, tmp_path / "out", None)
    assert record.read(tmp_path / "out").source == f"{REPOSITORY}@{REVISION}"
    first = (tmp_path / "out" / form.WEIGHTS).read_bytes()
    small_hub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", offline=True)
    made(of, given, tmp_path / "again", None)
    assert (tmp_path / "again" / form.WEIGHTS).read_bytes() == first
