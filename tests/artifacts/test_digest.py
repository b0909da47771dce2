"""Names: equal meanings have equal ones, different values have different ones, and the rest is refused by field."""

import copy
import json
import math
from enum import IntEnum, StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from nlrewrite.artifacts import canonical, digest
from nlrewrite.specs import CoderSpec, Site, Spec

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(list(value))}
    return tuple(reordered(item) for item in value) if isinstance(value, list) else value


@given(values)
def test_key_order_and_the_type_of_a_sequence_do_not_matter(value: Any) -> None:
    assert digest(reordered(value)) == digest(value)


@given(values)
def test_a_name_is_sixteen_digits_and_stays(value: Any) -> None:
    name = digest(value)
    assert len(name) == 16
    assert set(name) <= set("0123456789abcdef")
    assert digest(copy.deepcopy(value)) == name


@given(values, values)
def test_different_values_have_different_names(one: Any, other: Any) -> None:
    same = json.dumps(canonical(one), sort_keys=True) == json.dumps(canonical(other), sort_keys=True)
    assert (digest(one) == digest(other)) == same


@given(values)
def test_what_is_canonical_stays_so_through_json(value: Any) -> None:
    assert canonical(json.loads(json.dumps(canonical(value)))) == canonical(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0, False),
        (0, None),
        ("1", 1),
        ([], {}),
        ("", None),
        ([1, 2], [2, 1]),
        ([[1], 2], [1, [2]]),
    ],
)
def test_look_alikes_differ(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)


def test_equal_numbers_have_one_name() -> None:
    assert digest(-0.0) == digest(0.0)
    assert digest(1e2) == digest(100.0)
    assert digest(0.1 + 0.2) != digest(0.3)


def test_a_model_has_the_name_of_its_fields() -> None:
    assert digest(Site(kind="mlp", layer=3)) == digest({"layer": 3, "kind": "mlp"})
    assert digest(CoderSpec(k=8)) != digest(CoderSpec(k=9))


class Holder(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    part: Any


class Colour(IntEnum):
    RED = 1


class Word(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({1, 2}, "is a set"),
        (frozenset("a"), "is a frozenset"),
        (Path("store"), "is a PosixPath"),
        (len, "is a builtin_function_or_method"),
        (lambda: 1, "is a function"),
        (partial(len), "is a partial"),
        (b"bytes", "is a bytes"),
        (1j, "is a complex"),
        (object(), "is a object"),
        (np.float64(1), "is a float64"),
        (np.int64(1), "is a int64"),
        (np.zeros(2), "is a ndarray"),
        (np.str_("a"), "is a str_"),
        (Colour.RED, "is a Colour"),
        (Word.RED, "is a Word"),
        (math.nan, "a finite number.*nan"),
        (math.inf, "a finite number.*inf"),
        ({1: "a"}, "string keys.*has 1"),
        ("\ud800", "whole Unicode"),
        ({"\ud800": 1}, "whole Unicode"),
    ],
)
def test_what_has_no_canonical_form_is_refused_and_named(value: Any, said: str) -> None:
    with pytest.raises(TypeError, match=rf"value\.spec\[1\]\.part.*{said}"):
        digest({"spec": [1, Holder(part=value)]})


class Early(Spec):
    samples: int = 10


class Late(Spec):
    samples: int = 10
    seed: int = Field(default=0, json_schema_extra={"since": 2})
    site: Site = Field(default=Site(), json_schema_extra={"since": 2})
    order: dict[str, int] = Field(default_factory=dict, json_schema_extra={"since": 3})


def test_a_field_added_later_leaves_old_names_alone() -> None:
    assert digest(Late()) == digest(Early())
    assert digest(Late(samples=11)) == digest(Early(samples=11))
    names = {digest(each) for each in (Late(), Late(seed=1), Late(site=Site(layer=5)), Late(order={"a": 1}))}
    assert len(names) == 4


def test_a_field_added_without_since_changes_names() -> None:
    class Changed(Spec):
        samples: int = 10
        seed: int = 0

    assert digest(Changed()) != digest(Early())


def test_the_names_are_those_of_the_first_day() -> None:
    """Written down, so that no change to the encoder can move every name unseen."""
    assert digest([]) == "4f53cda18c2baa0c"
    assert digest(["coder", 1, {"k": 16, "rate": 0.5, "text": "naïve"}, {"tokens": "tokens/0"}]) == "f0b7a4b09ad64425"
