"""What holds for all tests: properties are tried on the same examples every time, however busy the machine is.

Where files of tests run side by side (make test), the longest begin first: begun last, one would run alone at the end.
"""

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

LONG = {
    "test_kills.py", "test_smoke.py", "test_rewrite.py", "test_launch.py", "test_packed.py", "test_older_prefect.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)
