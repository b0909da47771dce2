"""The name of a result: sha256 over the canonical JSON of what made it.

In: anything made of strings, integers, finite floats, booleans, None, lists, tuples, string-keyed mappings and frozen
pydantic models. Out: 16 hexadecimal digits. Invariant: equal meaning, equal text; what has no canonical form (sets,
paths, functions, NaN, numpy values) raises and names the field.
"""

import hashlib
import json
import math
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def canonical(value: Any, where: str = "value") -> Any:
    """`value` as plain JSON data, the same for equal meanings; TypeError names the field that has no such form."""
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise TypeError(f"{where} must be whole Unicode text to be part of a name: {value!r}") from error
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise TypeError(f"{where} must be a finite number to be part of a name: it is {value}")
        return value + 0.0  # minus zero equals zero, so it has the same text
    if isinstance(value, BaseModel):
        return {
            name: canonical(getattr(value, name), f"{where}.{name}")
            for name, field in type(value).model_fields.items()
            if not (_added_later(field) and getattr(value, name) == field.get_default(call_default_factory=True))
        }
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise TypeError(f"{where} must have string keys to be part of a name: it has {key!r}")
        return {canonical(key, f"a key of {where}"): canonical(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where} cannot be part of a name: it is a {type(value).__name__}, which has no canonical form")


def digest(value: Any) -> str:
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _added_later(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and "since" in field.json_schema_extra
