"""Which pairs a pilot asks about, and how their errors are found without having seen them."""

import numpy as np
import pytest
from scipy import sparse

from nlrewrite.calibrate.evidence import Known
from nlrewrite.errors import SettingError
from nlrewrite.probes.pilot_errors import errors, truths
from nlrewrite.probes.pilot_pairs import NOTHING, InColumns, Pairs, in_columns, pairs
from nlrewrite.seeds import generator
from nlrewrite.simulate.oracle import Manner, Scored, oracle
from nlrewrite.text.positions import Positions

LATENTS, CONTEXTS, PER_GROUP = 20, 1200, 30


def truth() -> sparse.csr_matrix:
    draws = generator(0, "pilot", "truth")
    rate = np.linspace(0.01, 0.2, LATENTS)
    value = np.where(draws.random((CONTEXTS, LATENTS)) < rate, draws.random((CONTEXTS, LATENTS)) + 0.5, 0)
    return sparse.csr_matrix(value.astype(np.float32))


def where() -> Positions:
    at = np.arange(CONTEXTS, dtype=np.int32)
    return Positions(at // PER_GROUP, at % PER_GROUP, at % 7, at // PER_GROUP)


def made(seed: int = 0, latents: int = 8, explained: np.ndarray | None = None) -> Pairs:
    there = np.ones(LATENTS, dtype=bool) if explained is None else explained
    return pairs(truth(), where(), there, latents, 15, 60, folds=4, seed=seed)


def known(truth_PL: sparse.csr_matrix) -> Known:
    dense = truth_PL.toarray()
    rate = (dense > 0).mean(0)
    return Known(dense.max(0), rate, dense.sum(0) / np.maximum((dense > 0).sum(0), 1))


def said(truth_PL: sparse.csr_matrix, chosen: Pairs, auc: float = 0.95, failed: float = 0.0) -> InColumns:
    whole = oracle(
        truth_PL, known(truth_PL).magnitude, Scored.of_auc(auc), Manner(failed=failed), seed=0, split="calibrate"
    )
    return in_columns(whole, chosen)


def test_nothing_is_asked_twice_and_activity_is_as_told() -> None:
    chosen, dense = made(), truth().toarray()
    for latent, context_S, active_S in zip(chosen.latent_L, chosen.context_LS, chosen.active_LS, strict=True):
        asked = context_S[context_S != NOTHING]
        assert len(np.unique(asked)) == len(asked)
        assert np.array_equal(dense[asked, latent] > 0, active_S[context_S != NOTHING])
        assert active_S.sum() == max(
            min(15, int((dense[:, latent] > 0).sum())), int((dense[asked[:60], latent] > 0).sum())
        )


def test_all_latents_share_the_first_contexts() -> None:
    chosen = made()
    assert chosen.shared == 60
    assert (chosen.context_LS[:, :60] == chosen.shared_C).all()


def test_a_column_holds_contexts_of_one_fold_and_folds_share_no_document() -> None:
    chosen, group_P = made(), where().group
    fold_of: dict[int, int] = {}
    for column, fold in enumerate(chosen.fold_S.tolist()):
        for context in chosen.context_LS[:, column]:
            if context != NOTHING:
                assert fold_of.setdefault(int(group_P[context]), fold) == fold


def test_weights_undo_the_drawing() -> None:
    chosen, dense = made(), truth().toarray()
    weight = chosen.weights()
    assert weight.sum(1) == pytest.approx(1)
    assert (weight * chosen.active_LS).sum(1) == pytest.approx((dense[:, chosen.latent_L] > 0).mean(0))


def test_of_latents_without_a_sentence_nothing_is_asked() -> None:
    explained = np.arange(LATENTS) % 2 == 0
    chosen = made(latents=LATENTS, explained=explained)
    assert chosen.queries() == int((chosen.context_LS != NOTHING)[explained].sum())


def test_another_seed_takes_other_latents_and_the_same_seed_the_same() -> None:
    assert np.array_equal(made(3).context_LS, made(3).context_LS)
    assert not np.array_equal(made(3).latent_L, made(4).latent_L)


def test_more_shared_contexts_than_there_are_is_refused() -> None:
    with pytest.raises(SettingError, match=r"inactive=1200, contexts=1200. Lower --set pilot.inactive"):
        pairs(truth(), where(), np.ones(LATENTS, dtype=bool), 4, 5, CONTEXTS, folds=4, seed=0)


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(SettingError, match="40 document groups, and it takes 42"):
        pairs(truth(), where(), np.ones(LATENTS, dtype=bool), 4, 5, 50, folds=21, seed=0)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_is_true_of_a_document_moves_no_prediction_in_it() -> None:
    chosen, truth_PL = made(), truth()
    heard = said(truth_PL, chosen)
    before = errors(chosen, heard, truth_PL, known(truth_PL), "hurdle")
    group = int(where().group[chosen.shared_C[5]])
    other = truth_PL.toarray()
    inside = where().group == group
    other[inside] *= 3  # activity stays as it is, and so do the pairs
    after = errors(chosen, heard, sparse.csr_matrix(other), known(truth_PL), "hurdle")
    here = chosen.asked_LS & inside[np.maximum(chosen.context_LS, 0)]
    predicted = [
        each.wrong_LS + truths(chosen, made_of)
        for each, made_of in ((before, truth_PL), (after, sparse.csr_matrix(other)))
    ]
    assert here.any()
    assert predicted[0][here] == pytest.approx(predicted[1][here], abs=1e-5)
    assert not np.allclose(predicted[0][~here & chosen.asked_LS], predicted[1][~here & chosen.asked_LS], atol=1e-5)


def test_a_missing_answer_is_worth_the_mean() -> None:
    chosen, truth_PL = made(), truth()
    heard = said(truth_PL, chosen, failed=0.3)
    found = errors(chosen, heard, truth_PL, known(truth_PL), "hurdle")
    missing = np.isnan(heard.score_LS) & chosen.asked_LS
    assert missing.any()
    assert found.wrong_LS[missing] == pytest.approx(found.off_LS[missing], abs=1e-6)


def test_a_better_simulator_leaves_less() -> None:
    chosen, truth_PL = made(latents=LATENTS), truth()
    weight = chosen.weights()
    left = [
        float(
            (
                np.square(errors(chosen, said(truth_PL, chosen, auc), truth_PL, known(truth_PL), "hurdle").wrong_LS)
                * weight
            ).sum()
        )
        for auc in (0.6, 0.9, 0.99)
    ]
    assert left[0] > left[1] > left[2]


@pytest.mark.parametrize("name", ["hurdle@centred", "hurdle+refit", "hurdle+output-gain", "quantile-6"])
def test_calibrators_that_need_all_latents_are_refused(name: str) -> None:
    chosen, truth_PL = made(), truth()
    with pytest.raises(SettingError, match=r"--set pilot\.calibrator=hurdle"):
        errors(chosen, said(truth_PL, chosen), truth_PL, known(truth_PL), name)
