"""A whole study on the smallest rewriting: every probe leaves its rows, and they hang together."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nlrewrite import pipeline, profiles, steps
from nlrewrite.artifacts import Artifact, Store
from nlrewrite.composition import rewrite
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.probes import ladder
from nlrewrite.profiles import Overrides, probing
from nlrewrite.progress import Progress
from nlrewrite.specs import PROBES, SampleSizeSpec, Spec

READ = (
    *("corpus", "subject", "tokens", "coder", "activations-explain", "activations-calibrate", "activations-report"),
    *("explanations", "simulation-calibrate", "simulation-report", "gates"),
    *(f"simulation-{split}-{rung}" for split in ("calibrate", "report") for rung in ("gate", "gated")),
    *PROBES,
)


class Needed(pipeline.Builder):
    """Builds what the probes read, and them."""

    made: dict[str, Artifact]

    def __call__(self, label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        build = label in READ
        self.made[label] = super().__call__(label, kind, spec, **inputs) if build else steps.name(kind, spec, inputs)
        return self.made[label]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    store = tmp_path_factory.mktemp("study") / "store"
    execution = Execution(store=str(store))
    spec = profiles.resolve("smoke", probing(Overrides(), PROBES), execution)
    needed = Needed(Store(str(store), execution.scratch), execution, Progress(), "test")
    needed.made = {}
    rewrite(spec, needed)
    found = {}
    for probe in PROBES:
        folder = needed.store.folder(needed.made[probe])
        summary = json.loads(Path(folder.path("summary.json")).read_text())
        found[probe] = pd.read_parquet(folder.path("rows.parquet")), summary
    return found


def test_a_ladder_for_every_simulator_and_fraction(study: dict[str, Any]) -> None:
    rows, summary = study["ladder"]
    sizes = rows.groupby(["simulator", "fraction"]).size()
    assert dict(sizes) == {(name, share): len(ladder.RUNGS) for name in ("rules", "oracle 0.95") for share in (0.5, 1)}
    assert summary["gates"]
    for _, each in rows.groupby(["simulator", "fraction"]):
        at = each.set_index("name")
        moves = (at["above_mean"].diff() - at["effect"]).iloc[1:]
        assert moves.abs().max() < 1e-9, "effects add up to the difference of the ends"
        assert at.loc["paired", "effect"] == 0
        assert at.loc["paired", "above_mean_error"] < at.loc["matched", "above_mean_error"] / 3
    one = rows[rows["fraction"] == 1].set_index(["simulator", "name"])
    assert (one.xs("matched", level="name")["effect"] == 0).all()
    assert (one["evicted"] == 0).all()
    assert one.loc[("oracle 0.95", "missing"), "effect"] != 0
    assert one.loc[("rules", "missing"), "effect"] == one.loc[("rules", "centred"), "effect"] == 0
    half = rows[rows["fraction"] == 0.5].set_index(["simulator", "name"])
    assert half.loc[("oracle 0.95", "published"), "evicted"] > 0


def test_requirements_stand_beside_theory(study: dict[str, Any]) -> None:
    rows, summary = study["requirement"]
    assert len(rows) == 4 * 3
    both = rows.dropna(subset=["error_ratio_in_theory"])
    assert len(both) == 2 * 2 + 2 * 2
    assert (both["error_ratio"] / both["error_ratio_in_theory"]).between(0.85, 1.15).all()
    assert 0.999 < summary["break_even_specificity"]["published base rate"] < 0.9995


def test_sizes_are_counted_in_questions(study: dict[str, Any]) -> None:
    rows, summary = study["sample-size"]
    random = rows[rows["drawn"] == "random"]
    assert sorted(set(random["contexts"])) == [50, 200]
    assert (random["positives"] / random["questions"]).round(6).nunique() == 1
    by_activity = rows[rows["drawn"] == "by activity"]
    assert (by_activity["questions"] <= 25).all()
    assert (by_activity["positives"] <= 5).all()
    assert set(summary["enough"]) == {"quantile-6", "hurdle"}
    for name in ("delta_ce", "kl", "above_mean"):
        low, mean, high = (rows[f"{name}{end}"] for end in ("_low", "", "_high"))
        assert ((low <= mean) & (mean <= high)).all()


def test_what_peeks_is_refused_for_sample_sizes(tmp_path: Path) -> None:
    from nlrewrite.probes.sample_size import build

    spec = SampleSizeSpec(calibrators=("quantile-6-on-prompt",))
    with pytest.raises(SettingError, match="quantile-6-on-prompt is fitted to the contexts it is measured on"):
        build(spec, {}, tmp_path, None)  # type: ignore[arg-type]
