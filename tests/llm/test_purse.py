"""Money: what is promised and spent stays within the limit together."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.errors import SettingError
from nlrewrite.llm.purse import Purse
from nlrewrite.llm.rates import Prices

PRICES = Prices(prompt=2.0, cached=0.5, new=6.0)


def test_tokens_cost_what_their_kind_costs() -> None:
    assert Purse(PRICES).cost(1e6, 1e5, 2e6) == pytest.approx(2.0 + 0.6 + 1.0)
    assert Purse().cost(1e6, 1e6) == 0.0


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1), st.booleans()), max_size=40), st.floats(0, 20))
def test_no_order_of_requests_passes_the_limit(asked: list[tuple[float, float, bool]], limit: float) -> None:
    purse, open_promises = Purse(PRICES, limit), []
    for most, share, settle_now in asked:
        if purse.promise(most):
            open_promises.append((most, most * share))
        if settle_now and open_promises:
            purse.settle(*open_promises.pop(0))
        assert purse.spent <= limit * (1 + 1e-9)
    paid = purse.spent + sum(share for _, share in open_promises)
    for promised, share in open_promises:
        purse.settle(promised, share)
    assert purse.spent == pytest.approx(paid) and purse.spent <= limit * (1 + 1e-9)


def test_what_comes_cheaper_leaves_room() -> None:
    purse = Purse(PRICES, 10.0)
    assert purse.promise(8.0) and not purse.promise(4.0)
    purse.settle(8.0, 1.0)
    assert purse.promise(9.0) and not purse.promise(0.1)


@pytest.mark.parametrize(("prices", "limit"), [(None, 1.0), (Prices(new=2.0), 1.0), (PRICES, -1.0), (PRICES, math.nan)])
def test_limits_that_cannot_be_kept(prices: Prices | None, limit: float) -> None:
    with pytest.raises(SettingError, match="a spending limit"):
        Purse(prices, limit)
