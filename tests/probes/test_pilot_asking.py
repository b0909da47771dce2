"""Which engines a pilot times: those that can run the reader, and no others."""

import json
from pathlib import Path

import pytest

from nlrewrite.execution import Execution
from nlrewrite.llm.engine import PrefixBlock
from nlrewrite.llm.opening import Wanted
from nlrewrite.probes.pilot_asking import timed
from tests.explain.asked import reader


@pytest.mark.parametrize(
    ("about", "engines"),
    [
        ({"kind": "trained"}, ["packed"]),
        ({"kind": "served", "model": "a/b"}, []),
        ({"kind": "hub", "model": "a/b", "revision": "0" * 40, "quantisation": "awq"}, []),
    ],
)
def test_what_can_run_the_reader_is_timed(about: dict[str, str], engines: list[str], tmp_path: Path) -> None:
    made = reader(tmp_path / "reader")
    made.path("reader.json").write_text(json.dumps(about))
    block = PrefixBlock.of([1, 2, 3], [[4], [5, 6]], (7, 8))
    found = timed(made, Execution(), Wanted((7, 8)), block)  # type: ignore[arg-type]
    assert list(found) == engines and all(each > 0 for each in found.values())
