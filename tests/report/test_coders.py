"""The page about coders, made from what was really measured of small ones."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.artifacts import Folder, Store
from nlrewrite.evaluate import frontier, replacement
from nlrewrite.execution import Execution
from nlrewrite.progress import Progress
from nlrewrite.report import coder_figures, coder_wording, coders
from nlrewrite.specs import CoderSpec, HubCoder, MeasureSpec, Site, Spec
from nlrewrite.steps import Running
from tests.evaluate import small_coders
from tests.report.hostile import ATTACKS
from tests.report.reading import Node, read

RUNNING = Running(Execution(), Progress())
SPEC = MeasureSpec(windows=12, resamples=200)
MEASURES = {"frontier": frontier.build, "replacement": replacement.build}
NUMBERS = iter(range(100, 10_000))


def curve(k: int) -> list[dict[str, float]]:
    return [
        {
            "step": step,
            "tokens": 64 * step,
            "fvu": 1 / (1 + step * k),
            "l0": k,
            "dead_share": 0.1,
            "learning_rate": 1e-3,
        }
        for step in range(0, 200, 50)
    ]


def trained(store: Store, k: int = 4, layer: int = 1, **more: Any) -> Folder:
    training = {"curve": curve(k), "fvu": 0.25, "live_share": 0.5, "site": f"transformer.h.{layer}.mlp"}
    files = {
        "coder": small_coders.saved(small_coders.random(k, seed=layer)),
        "training.json": training | {"tokens_seen": 12_800} | more.pop("training", {}),
        "record.json": {"kind": "transcoder", "format": "nlrewrite", "source": "trained"} | more.pop("record", {}),
    }
    spec = CoderSpec(k=k, width=24, skip=False, site=Site(layer=layer), **more)
    return small_coders.commit(store, "coder", files, spec, next(NUMBERS))


def measured(store: Store, kind: str, inputs: dict[str, Folder], tmp_path: Path) -> Folder:
    folder = tmp_path / f"measured-{kind}-{next(NUMBERS)}"
    folder.mkdir()
    read = {"subject": small_coders.subject(store), "tokens": small_coders.tokens(store)}
    MEASURES[kind](SPEC, read | inputs, folder, RUNNING)
    found = json.loads((folder / f"{kind}.json").read_text())
    return small_coders.commit(store, kind, {f"{kind}.json": found}, SPEC, next(NUMBERS))


def made(inputs: dict[str, Folder], out: Path) -> tuple[Node, dict[str, Any]]:
    out.mkdir(parents=True, exist_ok=True)
    coders.build(Spec(), inputs, out, RUNNING)
    page = (out / "report.html").read_text(encoding="utf-8")
    return read(page), json.loads((out / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coders")


@pytest.fixture(scope="module")
def store(root: Path) -> Store:
    return Store(str(root / "store"))


@pytest.fixture(scope="module")
def swept(store: Store, root: Path) -> dict[str, Folder]:
    inputs = {f"coder-{k}": trained(store, k) for k in (2, 16, 8)}
    return inputs | {"frontier": measured(store, "frontier", inputs, root)}


@pytest.fixture(scope="module")
def layers(store: Store, root: Path) -> dict[str, Folder]:
    inputs = {f"coder-{layer}": trained(store, 4, layer) for layer in (0, 1, 2)}
    return inputs | {"replacement": measured(store, "replacement", inputs, root)}


@dataclass(frozen=True)
class Made:
    page: Node
    results: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def sweep(swept: dict[str, Folder], root: Path) -> Made:
    return Made(*made(swept, root / "sweep"), root / "sweep")


@pytest.fixture(scope="module")
def replaced(layers: dict[str, Folder], root: Path) -> Made:
    return Made(*made(layers, root / "replaced"), root / "replaced")


def cells(page: Node, words: str) -> list[list[str]]:
    (region,) = [node for node in page.all("div", "scroll") if node.attributes.get("aria-label") == words]
    return [[cell.text for cell in line.all("td")] for line in region.one("tbody").all("tr")]


# -- a sweep ----------------------------------------------------------------------------------------------------------


def test_a_sweep_is_told_with_what_it_stands_beside(sweep):
    page, results = sweep.page, sweep.results
    found = results["frontier"]
    assert page.one("h1").text == "What 3 coders of the MLP of layer 1 cost, by k"
    lead = " ".join(node.text for node in page.all("p", "lead"))
    best = min(found["coders"], key=lambda row: row["ce"])
    assert f"own next-token loss on this text is {found['original']['ce']:.3f}" in lead
    assert f"(k = {best['value']}, " in lead
    assert f"{coder_wording.value(best, 'delta_ce')} {coder_wording.between(best, 'delta_ce')} nats" in lead
    table = cells(page, "What every coder costs")
    assert [line[3] for line in table[:3]] == [
        f"{row['ce']:.3f}" for row in sorted(found["coders"], key=lambda row: int(row["value"]))
    ]
    assert all(re.fullmatch(r"\d+(\.\d+)?%\[\d+(\.\d+)?, \d+(\.\d+)?\]", line[1]) for line in table[:3])
    front = cells(page, "Which coders no other beats")
    ordered = sorted(found["coders"], key=lambda row: row["l0"])
    assert [line[2] for line in front] == ["yes" if row["front"] else "no" for row in ordered]
    assert [line[0] for line in front] == [f"k = {row['value']}" for row in ordered[1:]] + ["–"]
    assert [line[4] for line in front][-1] == "–"


def test_coders_stand_in_the_order_of_their_values(sweep):
    page, results = sweep.page, sweep.results
    assert [each["label"] for each in results["coders"]] == ["coder-2", "coder-8", "coder-16"]
    names = [line.all("th")[0].text for line in page.named("coders").one("tbody").all("tr")]
    assert [name.partition("coder/")[0] for name in names] == ["k = 2", "k = 8", "k = 16"]


def test_the_front_is_drawn_from_the_numbers(sweep):
    drawn = pd.read_parquet(sweep.folder / "figures" / "frontier.parquet")
    rows = {f"k = {row['value']}": row for row in sweep.results["frontier"]["coders"]}
    assert set(drawn["coder"]) == set(rows)
    for each in drawn.to_dict("records"):
        for name in ("l0", "ce", "delta_ce", "delta_ce_low", "delta_ce_high", "front"):
            assert each[name] == rows[each["coder"]][name]
    svg = (sweep.folder / "figures" / "frontier.svg").read_text(encoding="utf-8")
    for words in ("original model", "output at its mean", ">2</text>", ">8</text>", ">16</text>", "log scale"):
        assert words in svg
    assert "Beside a point, where there is room: its k." in sweep.page.named("figure-frontier").text


def test_curves_of_all_coders_are_drawn_over_tokens(sweep):
    drawn = pd.read_parquet(sweep.folder / "figures" / "coder-training.parquet")
    assert set(drawn["measure"]) == {"fvu", "l0", "dead_share", "learning_rate"}
    one = drawn[(drawn["coder"] == "k = 8") & (drawn["measure"] == "fvu")]
    assert one["tokens"].tolist() == [0, 3200, 6400, 9600]
    assert one["value"].tolist() == pytest.approx([point["fvu"] for point in curve(8)])


def test_coders_at_several_layers_have_no_front(layers, store, root, tmp_path):
    inputs = {label: folder for label, folder in layers.items() if label != "replacement"}
    page, results = made(inputs | {"frontier": measured(store, "frontier", inputs, root)}, tmp_path)
    assert results["frontier"]["over"] == "layer"
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == {"by-layer", "coder-training"}
    assert "front" not in page.one("header").text
    assert page.one("h1").text == "What 3 coders of several places cost, by layer"


# -- layers -----------------------------------------------------------------------------------------------------------


def test_a_replacement_is_told_drawn_and_tabled(replaced):
    page, found = replaced.page, replaced.results["replacement"]
    lead = " ".join(node.text for node in page.all("p", "lead"))
    assert "With layers 0, 1 and 2 replaced by their coders at once" in lead
    assert f"is {found['all']['ce']:.3f} nats, where the model's own is {found['original']['ce']:.3f}" in lead
    most = max(found["layers"], key=lambda row: row["all_but"]["saved"])
    assert f"Leaving layer {most['layer']} as it is saves most" in lead
    whole, layer = cells(page, "All layers named, at once"), cells(page, "Layer by layer")
    assert [line[0] for line in whole] == [f"{found[arm]['ce']:.3f}" for arm in ("original", "all", "mean", "zero")]
    assert [line[1] for line in layer] == [f"{row['all_but']['ce']:.3f}" for row in found["layers"]]
    drawn = pd.read_parquet(replaced.folder / "figures" / "layers.parquet")
    saved = drawn[drawn["series"] == "saved by leaving it"]
    assert saved["value"].tolist() == [row["all_but"]["saved"] for row in found["layers"]]
    fvu = drawn[drawn["series"] == "with all replaced"]
    assert fvu["value"].tolist() == [row["patched"]["fvu"] for row in found["layers"]]
    arms = pd.read_parquet(replaced.folder / "figures" / "replaced.parquet")
    assert len(arms) == 5
    assert arms["ce"].tolist()[1] == pytest.approx(found["all"]["ce"])


def test_one_layer_alone_is_told_without_what_needs_several(layers, store, root, tmp_path):
    inputs = {"coder-1": layers["coder-1"]}
    page, _ = made(inputs | {"replacement": measured(store, "replacement", inputs, root)}, tmp_path)
    assert page.one("h1").text == "1 layer replaced by its coder at once"
    assert "in sum" not in page.one("header").text
    assert len(cells(page, "Layer by layer")[0]) == 3


# -- one coder --------------------------------------------------------------------------------------------------------


def test_a_trained_coder_is_told_by_its_training(store, tmp_path):
    cost = {"ce": {"original": 3.0, "coder": 3.25, "mean": 4.0, "zero": 4.5, "recovered": 0.75, "kl": 0.2}}
    page, results = made({"coder": trained(store, 8, training=cost)}, tmp_path)
    assert page.one("h1").text == "A coder of the MLP of layer 1"
    lead = page.one("p", "lead").text
    assert "24 latents leaves 25% of the variance there unexplained after 12,800 tokens" in lead
    assert "3.250 nats, where the model's own is 3.000, 75% of the way back" in lead
    assert set(results) == {"coders", "provenance"}
    assert not any(node.attributes.get("id") == "table" for node in page.all())


def test_a_coder_without_a_k_is_told_by_its_mean(store, tmp_path):
    found = trained(store, record={"k": 12, "l0": 12.34}, activation="relu", penalty=0.1)
    page, _ = made({"coder": found}, tmp_path)
    assert "24 latents, 12.3 of them active on a token on average, leaves 25%" in page.one("p", "lead").text
    text = page.one("body").text
    assert "relu, 12.3 active on average, 24 latents" in text
    assert "k = " not in text
    page, _ = made({"coder": trained(store, 8, record={"k": 8, "l0": 7.9})}, tmp_path / "topk")
    assert "topk, k = 8, 24 latents" in page.one("body").text


def test_a_coder_from_elsewhere_needs_no_training(store, tmp_path):
    spec = HubCoder(repo="someone/coders", revision="a" * 40, width=24, k=4, site=Site(layer=1, kind="residual"))
    record = {"kind": "sae", "format": "saelens", "source": f"someone/coders@{'a' * 40}/x", "fvu": 0.125, "tokens": 500}
    files = {"coder": small_coders.saved(small_coders.random(4)), "record.json": record}
    page, _ = made({"coder": small_coders.commit(store, "coder", files, spec, next(NUMBERS))}, tmp_path)
    assert "was not measured here" in page.one("p", "lead").text
    assert "12%" in page.named("coders").text
    assert "someone/coders@aaa" in page.named("coders").text
    assert not (tmp_path / "figures").exists() or not list((tmp_path / "figures").iterdir())
    bare = {"coder": small_coders.saved(small_coders.random(4))}
    page, _ = made({"coder": small_coders.commit(store, "coder", bare, spec, next(NUMBERS))}, tmp_path)
    assert "sparse autoencoder" in page.named("coders").text


def test_an_old_curve_without_tokens_is_drawn_by_its_steps(store, tmp_path):
    old = [{"step": step, "fvu": 1 - step / 200} for step in (0, 50, 100)]
    made({"coder": trained(store, 4, training={"curve": old}, batch=32)}, tmp_path)
    drawn = pd.read_parquet(tmp_path / "figures" / "coder-training.parquet")
    assert drawn["tokens"].tolist() == [0, 1600, 3200]
    assert set(drawn["measure"]) == {"fvu"}


# -- what every page keeps --------------------------------------------------------------------------------------------


def test_hostile_names_are_nothing_but_text(store, tmp_path):
    record = {"source": ATTACKS[0], "model": ATTACKS[1], "data": ATTACKS[3], "revision": ATTACKS[2]}
    coder = trained(store, 4, record=record, training={"site": ATTACKS[4]})
    page, _ = made({f"coder-{ATTACKS[1]}": coder, f"coder-{ATTACKS[3]}": coder}, tmp_path)
    assert not page.all("img") and not page.all("script")
    allowed = {"html", "body", "head"}
    assert not {node.tag for node in page.all()} & ({"iframe", "object", "embed", "form", "base"} - allowed)
    assert not any(name.startswith("on") for node in page.all() for name in node.attributes)
    assert "onerror=alert" in page.named("coders").text
    for path in (tmp_path / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("which", ["sweep", "replaced"])
def test_the_page_refers_to_nothing_and_runs_nothing(which, request):
    page = request.getfixturevalue(which).page
    policy = next(n.attributes["content"] for n in page.all("meta") if n.attributes.get("http-equiv"))
    assert "default-src 'none'" in policy and "script-src" not in policy
    for node in page.all():
        for name in ("src", "href"):
            assert (node.attributes.get(name) or "#").startswith(("#", "data:,")), node.tag
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    links = {node.attributes["href"] for node in page.one("nav").all("a")}
    assert links <= {f"#{each}" for each in ids}


def test_two_builds_give_the_same_bytes_without_times_and_paths(sweep, replaced, layers, root, tmp_path):
    made(layers, tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 2 + 2 * 3
    for file in files:
        assert (tmp_path / file).read_bytes() == (replaced.folder / file).read_bytes()
    for each in (sweep, replaced):
        page = (each.folder / "report.html").read_text(encoding="utf-8")
        assert not re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d", page)
        assert str(root) not in page


def test_labels_of_many_coders_are_spread_and_the_ends_are_named():
    for count in (1, 2, 10, 11, 64):
        named = coder_figures.spread_over(count)
        assert named[0] == 0 and named[-1] == count - 1
        assert len(named) <= coder_figures.NAMED_AT_MOST
        assert np.diff(named).max(initial=0) - np.diff(named).min(initial=64) <= 1 or count <= 10
    assert coder_figures.shades(1) == [1.0]
    assert (np.diff(coder_figures.shades(5)) > 0).all()
    assert coder_figures.shades(5)[-1] == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_names_beside_points_never_lie_on_one_another(where):
    labels = ["0.003"] * len(where)
    boxes = []
    for at, above in coder_figures.apart(np.array(where), labels):
        (x, y), width = where[at], 0.03 + 5 * coder_figures.LETTER
        boxes.append((x, x + width, y + (1 if above else -1) * coder_figures.LINE))
    assert boxes
    for one, (start, end, line) in enumerate(boxes):
        for left, right, other in boxes[:one]:
            assert right < start or end < left or abs(line - other) > coder_figures.LINE
    assert len(coder_figures.apart(np.array([(0.1, 0.5), (0.9, 0.5)]), ["a", "b"])) == 2


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0.1, 0.3, "[0.100, 0.300]"), (0.0021, 0.005, "[0.0021, 0.0050]"), (-1e-9, 1e-9, "[0.00000, 0.00000]")],
)
def test_an_interval_has_the_decimals_it_is_worth(low, high, shown):
    assert coder_wording.between({"x_low": low, "x_high": high}, "x") == shown
