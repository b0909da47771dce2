from dataclasses import asdict, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from nlrewrite.activations.codes import Kept, Retuned, largest
from nlrewrite.errors import SettingError
from nlrewrite.evaluate.arms import Arm, Writer, arms
from nlrewrite.evaluate.build import summarise
from nlrewrite.evaluate.losses import Losses, losses
from nlrewrite.evaluate.selection import subsets
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.specs import EvaluateSpec
from tests.evaluate.planted import LATENTS, K, Planted, planted, random_codes, sources

KEY = {
    "arm", "site", "simulator", "explanation", "calibrator", "information", "topk", "selection", "fraction", "position",
    "subset_seed",
}  # fmt: skip
FIGURES = {
    "n_latents", "n_contexts", "n_documents", "n_groups", "ce", "delta_ce", "delta_ce_low", "delta_ce_high", "kl",
    "kl_low", "kl_high", "gap_closed", "gap_closed_low", "gap_closed_high", "gap_closed_kl", "eviction_rate",
}  # fmt: skip
SPEC = EvaluateSpec(fractions=(0.25, 0.5, 1.0), topk=("none", "values", "deviations"), resamples=200)


@pytest.fixture(scope="module")
def given() -> Planted:
    return planted()


def planned(given: Planted, spec: EvaluateSpec = SPEC, **changes: Any) -> list[Arm]:
    score = np.linspace(0, 1, LATENTS)
    made = replace(sources(given), **changes)
    return arms(spec, made, given.coder, "a site", score, given.x_PD.mean(0), given.y_PE.mean(0))


def written(arm: Arm, given: Planted) -> torch.Tensor:
    assert arm.write is not None
    return arm.write(np.arange(len(given.where)), given.x_PD, given.y_PE)


def find(every: list[Arm], **key) -> Arm:
    found = [arm for arm in every if all(getattr(arm.key, name) == value for name, value in key.items())]
    assert len(found) == 1
    return found[0]


def dense(given: Planted, values_PL: np.ndarray) -> torch.Tensor:
    return given.coder.beside(given.x_PD) + torch.from_numpy(values_PL.astype(np.float32)) @ given.coder.dec_LE


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one - other).abs().max() < 1e-4


def test_predicted_and_true_latents_mix_exactly(given: Planted) -> None:
    every = np.arange(len(given.where))
    predicted, writer = random_codes(len(every), seed=5), Writer(given.coder, given.truth)
    truth = given.truth.dense(every)
    for share in (0.0, 0.4, 1.0):
        mask = generator(0, "mask").random(LATENTS) < share
        mixed = np.where(mask, predicted.dense(every), truth)
        close(writer.latents(predicted, mask)(every, given.x_PD, given.y_PE), dense(given, mixed))
    code = given.coder.encode(given.x_PD)
    coder = given.coder.decode(code) + given.coder.beside(given.x_PD)
    nothing = writer.latents(predicted, np.zeros(LATENTS, dtype=bool))
    close(nothing(every, given.x_PD, given.y_PE), coder)
    close(writer.latents(given.truth)(every, given.x_PD, given.y_PE), coder)


def test_at_fraction_one_no_true_activation_is_used(given: Planted) -> None:
    """Another truth changes the coder and what is mixed with it, and nothing else."""
    here = find(planned(given), arm="coder", position="all")
    other = planned(given, truth=random_codes(len(given.where), seed=9))
    for arm, changed in zip(planned(given), other, strict=True):
        assert arm.key == changed.key
        if arm.key.arm == "original":
            continue
        uses_truth = arm.key.arm in ("coder", "no_skip") or arm.key.selection not in ("all", "harmless")
        assert torch.equal(written(arm, given), written(changed, given)) != uses_truth, arm.key
    assert here.key.fraction == 0


def test_every_arm_writes_what_it_says(given: Planted) -> None:
    every, all_rows, made = planned(given), np.arange(len(given.where)), sources(given)
    whole = {"position": "all", "selection": "all", "topk": "none"}

    def values(name: str) -> torch.Tensor:
        return dense(given, getattr(made, name).dense(all_rows))

    for name in ("mean", "mean_firing", "zero", "token_lookup", "bigram_lookup", "oracle"):
        close(written(find(every, arm=name, **whole), given), values(name))
    close(written(find(every, arm="zero", **whole), given), given.coder.beside(given.x_PD))
    close(written(find(every, arm="mlp_mean", **whole), given), given.y_PE.mean(0).expand_as(given.y_PE))
    assert (written(find(every, arm="mlp_zero", **whole), given) == 0).all()
    beside = given.coder.beside(given.x_PD.mean(0, keepdim=True))
    skipless = torch.from_numpy(made.truth.dense(all_rows)) @ given.coder.dec_LE + beside
    close(written(find(every, arm="no_skip", **whole), given), skipless)
    for calibrator in ("hurdle", "none"):
        arm = find(every, arm="rewritten", calibrator=calibrator, explanation="rules", **whole)
        close(written(arm, given), dense(given, made.rewritten[calibrator][1].dense(all_rows)))
        assert arm.key.information == made.rewritten[calibrator][0].information
    close(written(find(every, arm="shuffled", **whole), given), dense(given, made.shuffled[1].dense(all_rows)))
    shorter = find(every, arm="rewritten", explanation="rules-2", **whole)
    close(written(shorter, given), dense(given, made.lengths[2][1].dense(all_rows)))
    for explanation, simulator in (("gate", "gate"), ("gated", "gate + rules")):
        arm = find(every, arm="rewritten", explanation=explanation, **whole)
        close(written(arm, given), dense(given, made.rungs[explanation][1].dense(all_rows)))
        assert (arm.key.simulator, arm.key.calibrator) == (simulator, "hurdle")


@pytest.mark.parametrize(("policy", "rest"), [("values", "zero"), ("deviations", "mean")])
def test_a_topk_is_taken_among_predicted_values_alone(given: Planted, policy: str, rest: str) -> None:
    every, made = np.arange(len(given.where)), sources(given)
    predicted, instead = made.rewritten["hurdle"][1].dense(every), getattr(made, rest).constant_L
    kept = np.argsort(-np.abs(predicted - instead), axis=1, kind="stable")[:, :K]
    expected = np.tile(instead, (len(every), 1))
    np.put_along_axis(expected, kept, np.take_along_axis(predicted, kept, 1), 1)
    close(written(find(planned(given), topk=policy, position="all"), given), dense(given, expected))


@pytest.mark.parametrize("policy", ["none", "values", "deviations", "mixed"])
def test_a_refitted_decoder_writes_deviations_and_the_coders_own_writes_means(given: Planted, policy: str) -> None:
    """Of every latent mean @ own + (value - mean) @ refitted if it is predicted, value @ own if it is true."""
    rows, made = np.arange(len(given.where)), sources(given)
    fitted, values = made.rewritten["hurdle"]
    decoder = generator(0, "refitted").normal(size=tuple(given.coder.dec_LE.shape)).astype(np.float32)
    mean = generator(0, "means").random(LATENTS).astype(np.float32)
    retuned = {"hurdle": (replace(fitted, mean=mean, decoder_LE=decoder), Retuned(values, mean, decoder))}
    spec = SPEC.model_copy(update={"topk": ("none", policy) if policy != "none" else ("none",), "positions": ("all",)})
    predicted, truth = values.dense(rows), made.truth.dense(rows)
    found = [arm for arm in planned(given, spec, rewritten=retuned) if arm.key.topk == policy]
    found = [arm for arm in found if (arm.key.arm, arm.key.explanation) == ("rewritten", "rules")]
    assert len(found) == {"none": 8, "mixed": 7}.get(policy, 1)
    for arm in found:
        mask = np.arange(LATENTS) < 5 if arm.key.selection == "harmless" else _mask(given, arm)
        if policy in ("values", "deviations"):
            vector = Kept(values, K, made.zero.constant_L if policy == "values" else made.mean.constant_L).dense(rows)
        elif policy == "mixed":
            mixture = np.where(mask, predicted, truth)
            vector = np.where(largest(mixture, K), mixture, 0)
        else:
            vector = np.where(mask, predicted, truth)
        if arm.key.selection == "harmless":
            own, away = np.where(mask, mean, made.mean.constant_L), np.where(mask, predicted - mean, 0)
        else:
            own, away = np.where(mask, mean, vector), np.where(mask, vector - mean, 0)
        close(written(arm, given), dense(given, np.broadcast_to(own, truth.shape)) + torch.from_numpy(away @ decoder))


def test_where_a_sentence_may_do_harm_the_latent_has_its_mean(given: Planted) -> None:
    every, made = np.arange(len(given.where)), sources(given)
    arm = find(planned(given), selection="harmless", position="all")
    predicted = made.rewritten["hurdle"][1].dense(every)
    used = np.arange(LATENTS) < 5
    close(written(arm, given), dense(given, np.where(used, predicted, made.mean.constant_L)))
    assert (arm.key.fraction, arm.n_latents, arm.compared) == (1.0, 5, ("all", 1.0, 0))
    without = SPEC.model_copy(update={"harmless": False})
    assert not [arm for arm in planned(given, without) if arm.key.selection == "harmless"]


# -- TopK over predicted and true values together ----------------------------------------------------------------------

MIXED = SPEC.model_copy(update={"topk": ("none", "mixed")})


def test_as_published_predictions_push_out_true_values(given: Planted) -> None:
    """Against a sort of each row, with all latents and with parts of them."""
    rows, made = np.arange(len(given.where)), sources(given)
    predicted, truth = made.rewritten["hurdle"][1].dense(rows), made.truth.dense(rows)
    for arm in planned(given, MIXED):
        if arm.key.topk != "mixed":
            assert arm.eviction_rate == 0
            continue
        subset = _mask(given, arm)
        mixture = np.where(subset, predicted, truth)
        kept = np.argsort(-mixture, axis=1, kind="stable")[:, :K]
        expected = np.zeros_like(mixture)
        np.put_along_axis(expected, kept, np.take_along_axis(mixture, kept, 1), 1)
        close(written(arm, given), dense(given, expected))
        there = rows if arm.key.position == "all" else np.cumsum(given.windows.lengths) - 1
        theirs = (truth > 0) & ~subset
        lost = theirs & (expected == 0)
        rate = lost[there].sum() / theirs[there].sum() if theirs[there].any() else 0.0
        assert arm.eviction_rate == pytest.approx(rate)
    rates = [arm.eviction_rate for arm in planned(given, MIXED) if arm.key.topk == "mixed" and arm.key.fraction < 1]
    assert len(rates) == 2 * 2 * 3
    assert 0 < max(rates) <= 1


def _mask(given: Planted, arm: Arm) -> np.ndarray:
    """The latents of an arm: all, or what the mean ablation of the same subset does not keep."""
    if arm.key.selection == "all":
        return np.ones(LATENTS, dtype=bool)
    ranked = {"top": np.linspace(0, 1, LATENTS), "gain": np.linspace(1, -1, LATENTS)}
    key = arm.key.selection, arm.key.fraction, arm.key.subset_seed
    (found,) = [each for each in subsets(MIXED, ranked) if (each.selection, each.fraction, each.seed) == key]
    return found.mask_L


def test_the_first_policy_is_the_one_that_parts_and_controls_are_measured_with(given: Planted) -> None:
    spec = SPEC.model_copy(update={"topk": ("values", "mixed")})
    every = planned(given, spec)
    for arm in every:
        if arm.key.arm == "shuffled":
            assert arm.key.topk == "values"
        if arm.key.arm not in ("rewritten", "shuffled"):
            assert arm.key.topk == "none"
    parts = [arm.key.topk for arm in every if arm.key.arm == "rewritten" and arm.key.selection == "top"]
    assert parts == ["values", "mixed"] * 4
    keys = [arm.key for arm in every]
    assert len(set(keys)) == len(keys)


# -- subsets that are drawn anew ---------------------------------------------------------------------------------------

FRESH = SPEC.model_copy(update={"draw": "fresh", "subsets": 1, "fractions": (0.5,)})


def test_fresh_subsets_differ_between_windows_and_arms_and_stay_as_they_are(given: Planted) -> None:
    every = planned(given, FRESH, token_lookup=sources(given).mean)
    sampled = {arm.key.arm: arm for arm in every if arm.key.selection == "sampled" and arm.key.position == "all"}
    rows, made = np.arange(len(given.where)), sources(given)
    truth = made.truth.dense(rows)
    written_by = {name: written(arm, given) for name, arm in sampled.items()}
    assert all(torch.equal(written(arm, given), written_by[name]) for name, arm in sampled.items())
    assert not torch.allclose(written_by["mean"], written_by["token_lookup"])  # the same values, other latents
    halves = [np.isin(np.arange(LATENTS), chosen) for chosen in combinations(range(LATENTS), LATENTS // 2)]
    beside, found = given.coder.beside(given.x_PD), []
    for window in range(len(given.windows)):
        here = given.where.window == window
        wanted, values, rest = written_by["zero"][here], truth[here].astype(np.float32), beside[here]
        candidates = [
            mask
            for mask in halves
            if close_enough(wanted, rest + torch.from_numpy(np.where(mask, 0, values)) @ given.coder.dec_LE)
        ]
        assert candidates, f"no subset of half of the latents is at zero in window {window}"
        found.append({mask.tobytes() for mask in candidates})
    assert not set.intersection(*found)


def close_enough(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-4)


def test_the_best_latents_stand_beside_random_ones_that_are_ablated(given: Planted) -> None:
    every = planned(given, FRESH)
    best = [arm for arm in every if arm.key.selection == "top" and arm.key.position == "all"]
    assert {arm.key.arm for arm in best} == {"rewritten", "shuffled"}
    assert {arm.compared for arm in best} == {("sampled", 0.5, 0)}
    nested = planned(given)
    assert all(arm.compared[0] == "top" for arm in nested if arm.key.selection == "top")


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(given: Planted):
    every = planned(given)
    writes = {str(index): (arm.key.position, arm.write) for index, arm in enumerate(every)}
    found = losses(given.model, given.located, given.windows, writes, 1000, Progress())
    return every, found


def test_a_row_has_every_field_and_its_key_is_its_own(given: Planted, measured) -> None:
    every, found = measured
    rows = summarise(SPEC, every, found, given.where, given.windows).rows
    assert len(rows) == len(every)
    assert all(set(row) >= KEY | FIGURES for row in rows)
    keys = [tuple(row[name] for name in sorted(KEY)) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(set(asdict(arm.key)) == KEY for arm in every)
    by_rules = [row for row in rows if row["explanation"] in ("rules", "shuffled")]
    assert {row["n_unexplained"] for row in by_rules if row["selection"] == "all"} == {2}
    assert {row["n_unexplained"] for row in by_rules if row["selection"] == "top"} == {0}  # the first two score worst
    assert {row["n_unexplained"] for row in rows if row not in by_rules} == {0}
    parts = [row for row in rows if row["selection"] not in ("all", "harmless")]
    assert {(row["fraction"], row["n_latents"]) for row in parts} == {(0.25, 3), (0.5, 6)}


def test_figures_are_means_of_the_losses_with_intervals_around_them(given: Planted, measured) -> None:
    every, found = measured
    summary = summarise(SPEC, every, found, given.where, given.windows)
    sums, rows = summary.sums, summary.rows
    order = [index for position in SPEC.positions for index, arm in enumerate(every) if arm.key.position == position]
    for index, row in zip(order, rows, strict=True):
        arm, position = every[index], every[index].key.position
        assert {name: row[name] for name in KEY} == asdict(arm.key)
        base = next(str(at) for at in order if every[at].key.arm == "original" and every[at].key.position == position)
        assert row["ce"] == pytest.approx(found[str(index)].ce.mean(), abs=1e-5)
        assert row["delta_ce"] == pytest.approx((found[str(index)].ce - found[base].ce).mean(), abs=1e-5)
        assert row["kl"] == pytest.approx(found[str(index)].kl.mean(), abs=1e-5)
        assert row["delta_ce_low"] <= row["delta_ce"] <= row["delta_ce_high"]
        assert row["n_contexts"] == (len(given.where) if position == "all" else len(given.windows))
        assert row["n_groups"] == len(np.unique(given.windows.group))
        assert row["n_documents"] == len(np.unique(given.windows.document))
        mine = sums["arm"] == index
        assert sums["ce"][mine].sum() / sums["positions"][mine].sum() == pytest.approx(row["ce"])
        assert sums["window"][mine].tolist() == list(range(len(given.windows)))


PARTIAL = {"mean", "zero", "token_lookup", "oracle", "shuffled", "rewritten"}
LOSS = {"original": 0.0, "coder": 0.1, "mean": 1.1, "zero": 1.6, "rewritten": 0.6, "token_lookup": 0.85}


def test_gaps_are_measured_against_the_mean_of_the_same_latents(given: Planted, measured) -> None:
    """Losses that are planted: of all latents as above, and of a subset its share of that, so all shares are equal."""
    every, found = measured
    noise = generator(0, "noise").normal(size=len(given.where))
    made = {}
    for index, arm in enumerate(every):
        added = LOSS["coder"] + arm.key.fraction * (LOSS.get(arm.key.arm, 0.7) - LOSS["coder"])
        size = len(found[str(index)].ce)
        made[str(index)] = Losses(5 + noise[:size] + (0 if arm.key.arm == "original" else added), noise[:size] ** 2)
    rows = summarise(SPEC, every, made, given.where, given.windows).rows
    expected = {"original": 1.1, "coder": 1.0, "no_skip": 1.0, "mean": 0.0, "zero": -0.5, "rewritten": 0.5}
    expected["token_lookup"] = 0.25
    assert {row["arm"] for row in rows if row["selection"] == "top"} == PARTIAL
    for row in rows:
        assert row["gap_closed"] == pytest.approx(expected.get(row["arm"], 0.4))
        assert row["gap_closed_low"] == pytest.approx(row["gap_closed"])
        assert row["gap_closed_kl"] is None
        over = row["over_token_lookup"]
        if row["selection"] in ("all", "harmless"):
            assert over["mean"] == pytest.approx(row["gap_closed"] - 0.25)
        else:
            assert over is None


def test_prompts_that_are_too_easy_are_left_out_of_every_arm(given: Planted, measured) -> None:
    every, found = measured
    base = next(index for index, arm in enumerate(every) if arm.key.arm == "original" and arm.key.position == "all")
    original = found[str(base)].ce
    least = float(np.median(original))
    spec = SPEC.model_copy(update={"least_base_loss": least, "positions": ("all",)})
    rows = summarise(spec, every, found, given.where, given.windows).rows
    kept = original >= least
    for row in rows:
        assert row["n_contexts"] == kept.sum()
    assert rows[0]["ce"] == pytest.approx(original[kept].mean(), abs=1e-5)
    with pytest.raises(SettingError, match=r"Lower --set evaluate\.least_base_loss"):
        summarise(spec.model_copy(update={"least_base_loss": 99.0}), every, found, given.where, given.windows)
