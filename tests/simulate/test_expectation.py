import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.errors import SettingError
from nlrewrite.simulate.expectation import expected, probabilities

LOGP = np.log(np.array([[0.5, 0.3, 0, 0, 0, 0, 0, 0, 0, 0.2]], dtype=np.float32) + 1e-30)


def test_flavours_by_hand() -> None:
    mass = np.log(np.array([0.8], dtype=np.float32))
    top = np.array([[True] * 9 + [False]])
    assert expected("renormalised", LOGP)[0] == pytest.approx(0.3 + 1.8)
    assert expected("full", LOGP, mass)[0] == pytest.approx(0.8 * 2.1)
    assert expected("paper_top10", LOGP, mass, top)[0] == pytest.approx(0.8 * 0.3)


def test_what_was_not_stored_is_an_error() -> None:
    with pytest.raises(SettingError, match=r"ask\.mass=true"):
        expected("full", LOGP)
    with pytest.raises(SettingError, match="likeliest"):
        expected("paper_top10", LOGP, np.zeros(1))


@given(st.lists(st.floats(-8, 8), min_size=10, max_size=10), st.floats(-5, 0))
def test_full_is_renormalised_times_the_mass(logits: list[float], logmass: float) -> None:
    logp = np.array([logits]) - np.log(np.exp(logits).sum())
    mass = np.array([logmass], dtype=np.float32)
    full, own = expected("full", logp, mass), expected("renormalised", logp)
    assert full[0] == pytest.approx(own[0] * np.exp(logmass), rel=1e-4)
    assert 0 <= own[0] <= 9
    assert probabilities("renormalised", logp).sum() == pytest.approx(1, abs=1e-5)


def test_missing_stays_missing_and_untold_counts_nothing() -> None:
    logp = np.full((2, 10), np.nan, dtype=np.float16)
    logp[1] = -np.inf
    logp[1, 3] = 0
    found = expected("renormalised", logp)
    assert np.isnan(found[0]) and found[1] == 3


def test_no_and_yes_are_the_ends_of_the_scale() -> None:
    found = probabilities("renormalised", np.log(np.array([[0.75, 0.25], [np.nan, np.nan]])))
    np.testing.assert_allclose(found[0], [0.75, *[0] * 8, 0.25], rtol=1e-6)
    assert np.isnan(found[1]).all()
    with pytest.raises(SettingError, match="3 labels"):
        probabilities("renormalised", np.zeros((1, 3)))
