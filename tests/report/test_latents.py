import json

import numpy as np
import pandas as pd
import pytest

from nlrewrite.activations.pairs import read as read_pairs
from nlrewrite.calibrate import apply
from nlrewrite.calibrate.stored import read_calibrated
from nlrewrite.report.latents import FALSE_ALARMS, Dossier, dossiers, readable
from nlrewrite.simulate import rules as simulation
from nlrewrite.simulate.said import Spoken
from nlrewrite.text.corpus import read_documents
from nlrewrite.text.positions import positions
from nlrewrite.text.tokens import read_windows
from tests.report.conftest import Made


@pytest.fixture(scope="module")
def every(made: Made) -> list[Dossier]:
    return dossiers(made.spec.model_copy(update={"latents": 10_000, "examples": 40}), made.inputs)


def test_latents_are_listed_by_energy(made: Made, every: list[Dossier], listed: list[Dossier]):
    energy = pd.read_parquet(made.inputs["evaluation"].path("latents.parquet"))["energy"].to_numpy()
    assert len(every) == len(energy)
    assert [each.latent for each in every] == sorted(range(len(energy)), key=lambda latent: (-energy[latent], latent))
    assert [each.latent for each in listed] == [each.latent for each in every[: made.spec.latents]]
    assert sum(each.energy for each in every) == pytest.approx(1)


def test_a_latent_has_a_sentence_or_a_reason(every: list[Dossier]):
    for each in every:
        assert bool(each.sentence) != bool(each.why_none)
        assert (each.outcome == "ok") == bool(each.sentence)
        told = {name for name, value in each.scores.items() if value is not None}
        # a latent that is active in every window cannot be asked about in half of the windows
        assert told == (set(each.scores) if each.sentence else set()) - ({"detection_f1"} - told) or each.count == 0


def test_examples_hold_the_values_of_the_report_split(made: Made, every: list[Dossier]):
    where = positions(read_windows(made.inputs["tokens"], "report"))
    active = read_pairs(made.inputs["report"])
    calibrators, chosen = read_calibrated(made.inputs["calibration"])
    truth = np.zeros((len(where), calibrators[chosen].latents), dtype=np.float32)
    np.put_along_axis(truth, active.latents, np.maximum(active.values, 0), axis=1)
    said = simulation.read(made.inputs["simulation"])
    level = np.zeros_like(truth, dtype=int)
    level[said.position, said.latent] = said.level
    written = apply.values(calibrators[chosen], Spoken(said, len(where))).dense(np.arange(len(where)))
    seen = 0
    for each in every:
        for example in each.examples:
            alike = (truth[:, each.latent] == np.float32(example.true)) & (level[:, each.latent] == example.level)
            assert np.isclose(written[alike, each.latent], example.simulated, atol=1e-6).any()
            (target,) = [piece for piece in example.pieces if piece.target]
            assert (target.true, target.simulated, target.level) == (example.true, example.simulated, example.level)
            if example.why == "false alarm":
                assert example.true == 0
                assert example.level > 0
            else:
                assert example.true > 0
            seen += 1
    assert seen > 100


def test_examples_run_over_the_deciles_from_the_strongest_down(every: list[Dossier]):
    for each in every:
        drawn = [example for example in each.examples if example.why != "false alarm"]
        deciles = [int(example.why.removeprefix("decile ")) for example in drawn]
        assert deciles == sorted(deciles, reverse=True)
        assert set(deciles) <= set(range(1, 11))
        if each.count >= 20:
            assert set(deciles) == set(range(1, 11))


def test_false_alarms_are_the_surest_ones(made: Made, every: list[Dossier]):
    said = simulation.read(made.inputs["simulation"])
    active = read_pairs(made.inputs["report"])
    for each in every:
        alarms = [example for example in each.examples if example.why == "false alarm"]
        assert len(alarms) <= FALSE_ALARMS
        here = said.latent == each.latent
        truly = set(np.flatnonzero(((active.latents == each.latent) & (active.values > 0)).any(axis=1)).tolist())
        wrong = [
            int(level)
            for place, level in zip(said.position[here], said.level[here], strict=True)
            if int(place) not in truly
        ]
        assert [alarm.level for alarm in alarms[:1]] == ([max(wrong)] if wrong else [])


def test_pieces_are_the_text_of_the_document(made: Made, every: list[Dossier]):
    documents = read_documents(made.inputs["corpus"], "report")
    whole = {name: readable(text.encode()) for name, text in zip(documents.name, documents.text, strict=True)}
    checked = 0
    for example in every[0].examples + every[1].examples:
        shown = "".join(piece.text for piece in example.pieces).removeprefix("<|endoftext|>")
        if "\\x" not in shown:  # a window may start within a character
            assert shown in whole[example.document]
            checked += 1
    assert checked > 5


def test_tokens_that_are_no_characters_are_written_as_bytes():
    assert readable("é".encode()[:1]) == "\\xc3"
    assert readable(b" a\n") == " a⏎"
    assert readable("\u202e".encode()) == "\\u202e"


def test_dossiers_are_numbers_and_text_alone(listed: list[Dossier]):
    for each in listed:
        assert json.dumps(each.scores, allow_nan=False)
        assert np.isfinite([each.energy, each.frequency, each.largest, each.silent, each.energy_explained]).all()
