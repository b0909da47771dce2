import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlrewrite.report import figure, probes
from nlrewrite.report.facts import Facts
from nlrewrite.report.page import page
from nlrewrite.report.probes import Asked, figures, tables
from tests.report.reading import Node, read

NAMES = ("published", "quantile-7", "paired", "conditional mean")
SIMULATORS = {"rules": (0.1, 0.08, 0.07, -0.05), "oracle <0.84>": (5.6, 0.9, 0.4, -0.02)}


def ladder() -> Asked:
    rows = []
    for fraction in (0.5, 1.0):
        for simulator, values in SIMULATORS.items():
            for rung, (name, value) in enumerate(zip(NAMES, values, strict=True)):
                effect = 0.0 if rung in (0, 2) else value - values[rung - 1]
                width = 0.2 if rung < 2 else 0.01
                rows.append(
                    {
                        **{"simulator": simulator, "fraction": fraction, "rung": rung, "name": name},
                        "change": f"change {rung} & <b>",
                        **{"above_mean": value, "above_mean_low": value - width, "above_mean_high": value + width},
                        **{"effect": effect, "effect_low": effect - 0.01 * bool(effect)},
                        "effect_high": effect + 0.01 * bool(effect),
                        "note": "the interval alone changes" if name == "paired" else "",
                    }
                )
    return Asked("ladder", tuple(rows), {})


def requirement(measured: float | None = 0.9978) -> Asked:
    rows: list[dict[str, Any]] = []
    gaps = {"raw": (-9.0, -0.5, 0.3), "quantile-6": (-0.8, 0.1, 0.5), "hurdle": (0.1, 0.2, 0.55)}
    for calibrator, values in gaps.items():
        for specificity, auc, gap in zip((0.8, 0.99, 0.9999), (0.6, 0.9, 0.99), values, strict=True):
            ends = {"gap_closed": gap, "gap_closed_low": gap - 0.05, "gap_closed_high": gap + 0.05}
            rows.append({"kind": "flags", "specificity": specificity, "auc": None, "calibrator": calibrator, **ends})
            rows.append({"kind": "score", "specificity": None, "auc": auc, "calibrator": calibrator, **ends})
    even = {"measured": measured, "this base rate": 0.9975, "published base rate": 0.9992189}
    summary = {"rate": 0.0161, "sensitivity": 0.8, "published_rate": 0.0009766, "break_even_specificity": even}
    return Asked("requirement", tuple(rows), summary)


def sample_size() -> Asked:
    rows = [
        {
            **{"simulator": simulator, "drawn": drawn, "contexts": 4000 if active else size, "active": active},
            **{"questions": float(size), "calibrator": calibrator},
            **{"gap_closed": gap, "gap_closed_low": gap - 0.05, "gap_closed_high": gap + 0.05},
        }
        for simulator in ("rules", "oracle 0.9")
        for calibrator in ("quantile-7", "hurdle")
        for drawn, size, active, gap in (
            ("random", 250, None, 0.1),
            ("random", 4000, None, 0.4),
            ("by activity", 250, 50, 0.39),
        )
    ]
    return Asked("sample-size", tuple(rows), {"contexts": 4000, "rate": 0.0161})


def text(panel: str) -> str:
    return read(panel).one("svg").text


def test_the_ladder_has_a_column_per_simulator_and_a_row_per_change() -> None:
    found = figures([ladder()])["ladder"]
    assert len(found.panels) == 2
    for panel, simulator in zip(found.panels, SIMULATORS, strict=True):
        shown = text(panel)
        assert simulator in shown
        for rung in range(len(NAMES)):
            assert f"change {rung} & <b>" in shown
    assert "5.60 ▸" in text(found.panels[1]), "what leaves the frame is written at its edge"
    assert "▸" not in text(found.panels[0])
    assert len(found.table) == len(ladder().rows)


def test_the_table_of_the_ladder_has_the_paired_effect_of_each_change() -> None:
    whole, half = (read(each).one("table") for each in tables(ladder()))
    assert "all latents" in whole.one("caption").text
    assert "50% latents" in half.one("caption").text
    rows = [[cell.text for cell in row.all("td")] for row in whole.one("tbody").all("tr")]
    assert rows[0][1] == rows[0][3] == "–", "the first row changes nothing"
    assert rows[1][3] == "−4.700[−4.710, −4.690]"
    assert rows[2][1] == "–", "pairing changes the interval alone"
    assert rows[3] == [
        "−0.050[−0.060, −0.040]",
        "−0.120[−0.130, −0.110]",
        "−0.020[−0.030, −0.010]",
        "−0.420[−0.430, −0.410]",
    ]
    assert "the interval alone changes" in whole.one("tbody").all("tr")[2].text


def test_a_note_that_holds_for_one_simulator_names_it() -> None:
    asked = ladder()
    rows = tuple(
        row | ({"note": "only here"} if (row["simulator"], row["rung"]) == ("rules", 1) else {}) for row in asked.rows
    )
    body = read(tables(Asked("ladder", rows, {}))[0]).one("tbody").all("tr")
    assert "rules: only here" in body[1].text


def test_the_requirement_marks_where_flags_break_even() -> None:
    found = figures([requirement()])["requirement"]
    flags, scores = found.panels
    assert "99.78%" in text(flags)
    assert {"raw", "quantile-6", "hurdle"} <= {each.text for each in read(flags).all("text")}
    assert "0.99" in text(scores)
    for said in ("99.78% specificity (99.75% in theory)", "base rate of 0.00098 it takes 99.922%", "0.0161"):
        assert said in found.caption


def test_flags_that_never_break_even_are_not_marked() -> None:
    found = figures([requirement(None)])["requirement"]
    assert "%" not in text(found.panels[0]).replace("100%", "").replace("50%", "")
    assert "In theory flags break even at the published base rate" in found.caption


def test_missing_gaps_are_not_drawn() -> None:
    asked = requirement()
    rows = tuple(row | {"gap_closed": None, "gap_closed_low": None, "gap_closed_high": None} for row in asked.rows)
    found = figures([Asked("requirement", rows, asked.summary)])["requirement"]
    assert "hurdle" not in {each.text for each in read(found.panels[0]).all("text")}


def test_sample_sizes_are_drawn_for_both_ways_of_drawing() -> None:
    found = figures([sample_size()])["sample-size"]
    assert len(found.panels) == 2
    label = read(found.panels[0]).one("svg").attributes["aria-label"] or ""
    assert "hurdle by activity 250: 39%" in label
    assert "quantile-7 random 4000: 40%" in label


@pytest.mark.parametrize(
    ("value", "written"), [(0.9, "90%"), (0.999, "99.9%"), (0.9978, "99.78%"), (0.99922, "99.922%")]
)
def test_a_share_near_one_keeps_its_nines(value: float, written: str) -> None:
    assert probes._share(value) == written


def test_answers_are_read_from_the_artifacts(tmp_path: Path) -> None:
    import pandas as pd

    class Folder:
        def path(self, name: str) -> Path:
            return tmp_path / name

    pd.DataFrame({"simulator": ["a", "b"], "gap_closed": [0.5, np.nan]}).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "summary.json").write_text(json.dumps({"rate": 0.1}))
    (found,) = probes.gather({"ladder": Folder(), "coder": Folder()})  # type: ignore[dict-item]
    assert found.told() == {
        "summary": {"rate": 0.1},
        "rows": [{"simulator": "a", "gap_closed": 0.5}, {"simulator": "b", "gap_closed": None}],
    }


def test_probes_have_a_section_where_they_were_asked_for(told: Facts, with_gap: dict[str, Any], tmp_path: Path) -> None:
    asked = [ladder(), requirement(), sample_size()]
    drawn = figures(asked)
    tree: Node = read(page(with_gap, told, [], [], (), [(drawn[each.name], tables(each)) for each in asked]))
    section = tree.named("probes")
    assert [figure.attributes["id"] for figure in section.all("figure")] == [f"figure-{each.name}" for each in asked]
    assert len(section.all("table")) == 2
    assert "#probes" in {link.attributes["href"] for link in tree.one("nav").all("a")}
    ids = [node.attributes["id"] for node in tree.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    figure.write(drawn.values(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
