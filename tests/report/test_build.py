import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from nlrewrite import pipeline, steps
from nlrewrite.artifacts import Store
from nlrewrite.report.build import provenance
from tests.report.conftest import Made

KEY = (
    *("arm", "site", "simulator", "explanation", "calibrator", "information"),
    *("topk", "selection", "fraction", "position", "subset_seed"),
)
FIGURES = (
    *("n_latents", "n_contexts", "n_documents", "ce", "delta_ce", "delta_ce_low", "delta_ce_high"),
    *("kl", "kl_low", "kl_high", "gap_closed", "gap_closed_low", "gap_closed_high", "gap_closed_kl", "eviction_rate"),
)
MAY_BE_MISSING = {"gap_closed", "gap_closed_low", "gap_closed_high", "gap_closed_kl"}


def test_results_have_the_keys_that_programs_rely_on(made: Made):
    results = made.results
    assert {"headline", "arms", "steps", "provenance"} <= set(results)
    for row in results["arms"]:
        for name in KEY:
            assert isinstance(row[name], str | int | float), name
        for name in FIGURES:
            assert isinstance(row[name], int | float) or (row[name] is None and name in MAY_BE_MISSING), name
    headline = results["headline"]
    assert (headline["position"], headline["fraction"], headline["chosen_on"]) == ("all", 1, "calibrate")
    named = ("gap_closed", "low", "high", "token_lookup", "bigram_lookup", "shuffled", "oracle", "coder_share")
    for name in named:
        assert headline[name] is None or math.isfinite(headline[name]), name
    assert headline["over_token_lookup"] is None or set(headline["over_token_lookup"]) == {"mean", "low", "high"}
    assert [set(row) for row in results["steps"]] == [{"step", "artifact", "state", "seconds", "bytes"}] * len(
        results["steps"]
    )


def test_every_arm_is_there_at_both_positions(made: Made):
    arms = {"original", "coder", "rewritten", "mean", "zero", "mlp_mean", "mlp_zero", "no_skip"}
    arms |= {"token_lookup", "bigram_lookup", "shuffled", "oracle"}
    for position in ("all", "last"):
        rows = [row for row in made.results["arms"] if row["position"] == position]
        assert arms <= {row["arm"] for row in rows}
    keys = [tuple(row[name] for name in KEY) for row in made.results["arms"]]
    assert len(keys) == len(set(keys)), "a row's key names one row"


def test_the_files_hold_no_number_that_json_does_not_know(made: Made):
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    json.loads((made.published / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_two_builds_give_the_same_bytes(made: Made, tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.build(tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert Path("results.json") in files
    assert files == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert (tmp_path / "one" / "report.html").read_text(encoding="utf-8") == made.html


def test_the_files_hold_no_time_no_path_and_no_attempt(made: Made, tmp_path: Path):
    made.build(tmp_path)
    for file in ("results.json", "report.html"):
        content = (tmp_path / file).read_text(encoding="utf-8")
        assert not re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d", content)
        assert str(made.published.parents[1]) not in content
        assert not any(folder.manifest.attempt in content for folder in made.inputs.values())


def test_provenance_names_every_input_and_package(made: Made):
    found = provenance(made.spec, made.inputs)
    assert {label: made["artifact"] for label, made in found["artifacts"].items()} == {
        label: str(folder.manifest.artifact) for label, folder in made.inputs.items()
    }
    assert found["report"]["spec"] == made.spec.model_dump(mode="json")
    assert steps.packages().items() <= found["packages"].items()
    assert found["packages"]["matplotlib"]
    assert found == made.results["provenance"]


def test_every_figure_is_published_with_what_it_draws(made: Made):
    folder = made.published / "figures"
    names = {path.stem for path in folder.glob("*.svg")}
    assert names == {path.stem for path in folder.glob("*.parquet")}
    shown = set(re.findall(r'id="figure-([^"]+)"', made.html))
    assert shown <= names
    assert {"fractions", "by-score", "reliability", "explained", "p1-4", "p2-4"} <= names
    for name in names:
        root = ElementTree.fromstring((folder / f"{name}.svg").read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--" not in (folder / f"{name}.svg").read_text(encoding="utf-8"), "needs nothing but itself"
        assert len(pd.read_parquet(folder / f"{name}.parquet")) > 0


def test_figures_of_an_older_run_do_not_stay(made: Made, tmp_path: Path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "gone.svg").write_text("<svg/>")
    (tmp_path / "figures" / "notes.txt").write_text("mine")
    pipeline.publish(Store(made.execution.store), made.report, (), tmp_path)
    found = {path.name for path in (tmp_path / "figures").iterdir()}
    assert "gone.svg" not in found
    assert {"notes.txt", "fractions.svg", "fractions.parquet"} <= found


def test_the_page_is_small(made: Made):
    assert len(made.html.encode()) < 1_000_000


@pytest.mark.parametrize(("latents", "examples"), [(0, 0), (3, 0), (64, 1)])
def test_as_many_latents_are_listed_as_asked_for(made: Made, tmp_path: Path, latents: int, examples: int):
    made.build(tmp_path, made.spec.model_copy(update={"latents": latents, "examples": examples}))
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert content.count('id="latent-') == latents
    assert ("Examples of latent" in content) == (examples > 0)
