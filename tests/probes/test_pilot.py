"""A pilot on a small subject: how its loss reads errors, what free rewritings say, and the whole of it."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from nlrewrite import composition, steps
from nlrewrite.activations.codes import true_codes
from nlrewrite.activations.pairs import Active
from nlrewrite.artifacts import Artifact
from nlrewrite.evaluate.losses import losses
from nlrewrite.llm.engine import PrefixBlock, Scores
from nlrewrite.printing import pilot_text
from nlrewrite.probes import pilot, pilot_loss, upstream
from nlrewrite.probes.pilot_asking import faster
from nlrewrite.probes.pilot_gain import Composed, Figure
from nlrewrite.probes.pilot_loss import Translation
from nlrewrite.probes.pilot_pairs import in_columns
from nlrewrite.probes.upstream import Part
from nlrewrite.profiles import Overrides, settled
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.simulate.oracle import Manner, Scored, oracle
from nlrewrite.specs import PilotSpec, Spec
from nlrewrite.subject import sites
from nlrewrite.subject.batches import inside, padded
from nlrewrite.text.tokens import Windows
from tests.evaluate import planted
from tests.evaluate.planted import LATENTS
from tests.probes.making import made
from tests.simulate.asking import Told

SPEC = PilotSpec(latents=8, active=6, inactive=20, free=100, gradients=8)


def ground(layer: int | None = None) -> pilot.Ground:
    return pilot.ground(made(layer)[0])


@pytest.fixture(scope="module")
def told() -> pilot.Ground:
    """A subject whose text is what it says itself with the coder in place, so that ablation costs something."""
    up = made(layer=2)[0]
    windows, coder = planted.windows((12,) * 96), up.coder

    def put(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, 1)
        values, latents = coder.encode(flat).padded()
        sparse_ = torch.zeros(len(flat), LATENTS).scatter(1, latents, values)
        return (coder.beside(flat) + sparse_ @ coder.dec_LE).view_as(y)

    tokens = windows.tokens.copy()
    for at in range(1, tokens.shape[1]):
        with sites.patched(up.model, up.located, put):
            logits = sites.logits(up.model, torch.from_numpy(tokens[:, :at].astype(np.int64)))
        tokens[:, at] = logits[:, -1].argmax(-1).numpy()
    windows = Windows(tokens, windows.lengths, windows.document, windows.group, windows.start)
    record = sites.activations_upto(up.model, up.located, padded(windows))
    values, latents = coder.encode(record.x[inside(windows)]).padded()
    active = Active(latents.numpy().astype(np.int32), values.numpy())
    part = Part(windows, true_codes(active, LATENTS).extra_PL)
    again = upstream.upstream(up.model, up.located, coder, active, part, part, 64)
    return pilot.ground(again)


def test_gradients_are_those_of_the_divergence() -> None:
    """At a small error e the divergence is 1/2 E (g . e)^2, up to the tokens drawn."""
    on = ground()
    contexts = np.arange(0, on.part.count, 3)
    true_CE = np.asarray(on.part.truth_PL[contexts] @ on.up.dec_LE, dtype=np.float32)
    asked = pilot_loss.prompts(on.up, on.part.windows, on.part.where, contexts)
    reads = pilot_loss.gradients(on.up, asked, true_CE, 200, 0, Progress())
    error = 0.03 * generator(0, "error").normal(size=true_CE.shape).astype(np.float32)
    told = 0.5 * np.square(np.einsum("cre,ce->cr", reads, error)).mean()

    def arm(written: np.ndarray) -> tuple[str, object]:
        def write(rows: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            place = np.searchsorted(contexts, rows)
            there = np.isin(rows, contexts)
            found = y.clone()
            found[there] = on.up.coder.beside(x[there]) + torch.from_numpy(written[place[there]])
            return found

        return "all", write

    arms = {"coder": arm(true_CE), "off": arm(true_CE + error)}
    found = losses(on.up.model, on.up.located, on.part.windows, arms, 64, Progress(), {"all": "coder"})  # type: ignore[arg-type]
    divergence = found["off"].kl_coder
    assert divergence is not None
    assert told == pytest.approx(divergence[contexts].mean(), rel=0.15)


def test_one_window_for_many_contexts_reads_as_one_for_each() -> None:
    on = ground(layer=2)
    assert on.up.in_last_layer
    contexts = np.arange(2, on.part.count, 5)
    true_CE = np.asarray(on.part.truth_PL[contexts] @ on.up.dec_LE, dtype=np.float32)
    shared = pilot_loss.prompts(on.up, on.part.windows, on.part.where, contexts)
    cut = on.part.windows[on.part.where.window[contexts]]
    cut = Windows(cut.tokens, on.part.where.offset[contexts] + 1, cut.document, cut.group, cut.start)
    apart = pilot_loss.Prompts(cut, np.arange(len(contexts)), on.part.where.offset[contexts])
    assert len(shared.windows) < len(apart.windows)
    mean = [
        np.einsum("cre,crf->cef", each, each).mean((0,))
        for each in (pilot_loss.gradients(on.up, way, true_CE, 200, 0, Progress()) for way in (shared, apart))
    ]
    assert mean[0] == pytest.approx(mean[1], rel=0.3, abs=0.1 * float(np.abs(mean[0]).max()))
    losses_ = [pilot_loss.added(on.up, way, {"coder": true_CE}, Progress())["coder"].mean() for way in (shared, apart)]
    assert losses_[0] == pytest.approx(losses_[1], rel=1e-5)


def test_a_thinned_truth_keeps_the_mean() -> None:
    on = ground()
    mean = np.asarray(on.part.truth_PL.mean(0)).ravel().astype(np.float32)
    rate = on.part.truth_PL.getnnz(axis=0) / on.part.count
    total = np.zeros(LATENTS)
    for seed in range(200):
        added, rest = pilot_loss.thinned(on.part.truth_PL, rate, mean, 0.5, seed)
        total += np.asarray(added.mean(0)).ravel() + rest
    assert total / 200 == pytest.approx(mean, rel=0.05, abs=0.01)


def test_means_by_token_know_nothing_of_the_documents_they_are_used_in() -> None:
    on = ground()
    rows, where = np.arange(on.part.count), on.part.where
    before = pilot_loss.by_tokens(on.part.truth_PL, where.token, where.group, rows, on.up.mean_L.astype(np.float32))
    changed = on.part.truth_PL.tolil()
    group = where.group == where.group[0]
    changed[np.flatnonzero(group)] = 0
    after = pilot_loss.by_tokens(changed.tocsr(), where.token, where.group, rows, on.up.mean_L.astype(np.float32))
    assert np.array_equal(before[group], after[group])
    assert not np.array_equal(before[~group], after[~group])


def test_the_whole_of_it() -> None:
    on = ground()
    magnitude = on.up.known.magnitude
    gaps = []
    for auc in (0.6, 0.999):
        whole = oracle(on.part.truth_PL, magnitude, Scored.of_auc(auc), Manner(), seed=0, split="calibrate")
        pairs = pilot.chosen(SPEC, on, whole.explained)
        found, measured, translation = pilot.pilot(SPEC, on, pairs, in_columns(whole, pairs), Progress())
        assert (found.gap_closed is None) == (not translation.tells)
        assert measured.together.error > 0
        gaps.append(found.in_output.value)
    assert gaps[1] > gaps[0] + 0.2


def test_an_interval_holds_how_far_free_rewritings_were_off() -> None:
    whole = Composed(*(Figure(value, 0.01) for value in (0.4, 0.3, 1.0, 0.3)))
    sure, unsure = (pilot.predicted(whole, Translation(0.1, spread, {}, 2.0), 0.8).gap_closed for spread in (0.0, 0.2))
    assert sure.value == unsure.value == pytest.approx(1 - 0.3 * np.exp(0.1))
    assert sure.high - sure.low == pytest.approx(2 * 1.2816 * 0.01 * np.exp(0.1), rel=1e-3)
    assert unsure.high - unsure.low > 3 * (sure.high - sure.low)


def test_where_mean_ablation_costs_nothing_there_is_no_gap_to_predict() -> None:
    whole = Composed(*(Figure(value, 0.01) for value in (0.4, 0.3, 1.0, 0.3)))
    found = pilot.predicted(whole, Translation(0.0, 0.0, {}, 0.1, 0.06), 0.8)
    assert found.gap_closed is None and found.added_loss is None
    assert found.in_output.value == pytest.approx(0.7)
    result = {"prediction": asdict(found), "level": 0.8, "queries": 10, "latents": 5, "of_latents": 9}
    assert pilot_text(result, None).startswith("gap closed: not predicted")


def test_free_rewritings_cost_more_the_more_is_left_out(told: pilot.Ground) -> None:
    found = pilot.free(PilotSpec(free=400, gradients=16), told, Progress())
    assert found.tells
    assert set(found.tried) == {"60% of the activations", "80% of the activations", "the token's mean"}
    weighed, added = zip(*found.tried.values(), strict=True)
    assert 0 < weighed[1] < weighed[0] < 1
    assert 0 < added[1] < added[0]
    assert abs(found.shift) < 1.5


# -- as a command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smoke", "tiny-reader"])
def test_a_pilot_builds_nothing_that_the_whole_run_is_asked_for(profile: str) -> None:
    built: dict[str, str] = {}

    def step(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        built[label] = kind
        return steps.name(kind, spec, inputs)

    def name(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        return steps.name(kind, spec, inputs)

    composition.pilot(settled(profile, Overrides()), step, name)
    assert list(built)[-1] == "pilot"
    assert not {"answers", "evaluation", "report", "calibration"} & set(built.values())
    assert "activations-report" not in built
    assert ("simulation-calibrate" in built) == (profile == "smoke")


def test_a_pilot_asks_the_reader_that_was_taught() -> None:
    asked: dict[str, Artifact] = {}

    def step(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        asked[label] = inputs.get("reader") or steps.name(kind, spec, inputs)
        return steps.name(kind, spec, inputs)

    def name(label: str, kind: str, spec: Spec, **inputs: Artifact) -> Artifact:
        return steps.name(kind, spec, inputs)

    composition.pilot(settled("tiny-reader", Overrides(settings=("tune.steps=3",))), step, name)
    assert asked["tuned"].kind == "reader" and asked["pilot"].kind == "tuned"


def test_what_is_told() -> None:
    interval = {"value": 0.7351, "low": 0.66, "high": 0.81}
    prediction = dict.fromkeys(("gap_closed", "in_output", "alone", "added_loss"), interval)
    result = {"prediction": prediction, "level": 0.8, "queries": 25_000, "latents": 100, "of_latents": 1000}
    assert "gap closed, predicted: 0.735 [0.660, 0.810] (80% interval)" in pilot_text(result, 10)
    asked = {"engine": "packed", "queries": 25_000, "seconds": 100.0}
    told = pilot_text({**result, "asked": asked}, 9_000_000)
    assert "by packed: 100.0 s, 250.0 a second" in told
    both = pilot_text({**result, "asked": asked | {"seconds_each": {"vllm": 0.002, "packed": 0.004}}}, None)
    assert "fastest here: vllm 500.0 a second, packed 250.0 a second" in both
    assert "the whole run: 9,000,000 questions, 10 hours at this rate" in told


def test_engines_are_told_the_fastest_first() -> None:
    block = PrefixBlock.of([1, 2], [[3], [4, 5]], [6, 7])
    work = {"much": _Working(40), "little": _Working(1)}
    found = faster(work, block)
    assert list(found) == ["little", "much"]
    assert all(each > 0 for each in found.values())


class _Working(Told):
    """Answers so many blocks for each one asked."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def digits(self, block: PrefixBlock) -> Scores:
        for _ in range(self._times):
            found = super().digits(block)
        return found  # pyright: ignore[reportPossiblyUnboundVariable]


def test_a_site_below_the_last_layer_has_a_window_for_each_context() -> None:
    up = made(layer=0)[0]
    assert not up.in_last_layer
    asked = pilot_loss.prompts(up, up.calibrate.windows, up.calibrate.where, np.array([3, 4, 20]))
    assert asked.windows.lengths.tolist() == (asked.column_C + 1).tolist()
    assert asked.row_C.tolist() == [0, 1, 2]
