import pytest
import torch

from nlrewrite.coders import products
from nlrewrite.seeds import torch_generator


def error(rounded: bool) -> float:
    draws = torch_generator(1, "a product")
    a, b = torch.randn(40, 300, generator=draws), torch.randn(300, 50, generator=draws)
    found = (a.bfloat16() @ b.bfloat16()).float() if rounded else a @ b
    wrong = (found.double() - a.double() @ b.double()).abs()
    return float((wrong / (a.norm(dim=1)[:, None] * b.norm(dim=0))).max())


def test_the_setting_of_torch_is_as_before_behind_fast_products() -> None:
    before = torch.get_float32_matmul_precision()
    with products.fast_products(True) as on:
        assert on == products.exact()
        assert torch.get_float32_matmul_precision() == ("medium" if on else before)
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), products.fast_products(True):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(("wanted", "device"), [(False, "cpu"), (True, "cuda")])
def test_nothing_is_set_where_they_are_not_wanted_or_the_cpu_does_not_multiply(wanted: bool, device: str) -> None:
    with products.fast_products(wanted, device) as on:
        assert not on
        assert torch.get_float32_matmul_precision() == "highest"


def test_fast_products_are_as_exact_as_float32_and_the_bound_tells_them_from_bfloat16() -> None:
    with products.fast_products(True):
        assert error(rounded=False) < products.EXACT / 10
    assert error(rounded=True) > 10 * products.EXACT


def test_products_that_are_rounded_stay_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "EXACT", 0.0)
    products.exact.cache_clear()
    with products.fast_products(True) as on:
        assert not on
    products.exact.cache_clear()
