import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.specs import HubDataset, PythonDocs, TextFolder
from nlrewrite.text import sources


def texts_in(folder: Path) -> Execution:
    return Execution(text_folder=str(folder))


@pytest.fixture(scope="module")
def python_documents() -> list[sources.Document]:
    return list(sources.documents(PythonDocs(), Execution()))


def test_the_documentation_of_python_has_topics_and_docstrings_and_no_tests(
    python_documents: list[sources.Document],
) -> None:
    names = [document.name for document in python_documents]
    assert "help('assert')" in names
    assert "argparse.py" in names
    assert "json/decoder.py:JSONDecoder" in names
    assert not [name for name in names if "/test/" in name or name.startswith(("test/", "idlelib/", "lib2to3/"))]
    assert 1000 < len(names) < 10_000
    assert 1_000_000 < sum(len(document.text) for document in python_documents) < 10_000_000
    assert all(len(each.text) > sources.SHORTEST_DOCSTRING for each in python_documents if ".py" in each.name)


def test_another_process_reads_the_same_documents_in_the_same_order(python_documents: list[sources.Document]) -> None:
    script = (
        "import hashlib; from nlrewrite.execution import Execution; from nlrewrite.specs import PythonDocs\n"
        "from nlrewrite.text.sources import documents, fingerprint\n"
        "found = repr([(each.name, each.text) for each in documents(PythonDocs(), Execution())]).encode()\n"
        "print(hashlib.sha256(found).hexdigest(), fingerprint(PythonDocs(), Execution()))"
    )
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.split()
    here = hashlib.sha256(repr([(each.name, each.text) for each in python_documents]).encode()).hexdigest()
    assert there == [here, sources.fingerprint(PythonDocs(), Execution())]


def test_a_fingerprint_of_python_imports_nothing_heavy() -> None:
    script = (
        "import sys; from nlrewrite.execution import Execution; from nlrewrite.specs import PythonDocs\n"
        "from nlrewrite.text.sources import fingerprint\n"
        "fingerprint(PythonDocs(), Execution())\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow', 'datasets', 'tokenizers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_unit_is_a_module_a_function_or_a_class_with_all_it_contains() -> None:
    long = "words " * 20
    module = f'''
"""Module {long}"""
try:
    def inside_try():
        """Function {long}"""
        def nested():
            """Nested {long}"""
except ImportError:
    pass
class Thing:
    """Class {long}"""
    def method(self):
        """Method {long}"""
    def short(self):
        """Short."""
    class Inner:
        async def deep(self):
            """Deep {long}"""
def undocumented():
    return 1
'''
    units = list(sources.units(module.encode()))
    assert [name for name, _ in units] == ["", "inside_try", "Thing"]
    assert [text.split()[0] for text in units[2][1].split("\n\n")] == ["Class", "Method", "Deep"]
    assert [text.split()[0] for text in units[1][1].split("\n\n")] == ["Function", "Nested"]


def test_a_folder_gives_its_visible_text_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name, text in {
        "b.md": "bee",
        "a.txt": "\ufeffay",
        "sub/c.RST": "sea",
        "d.py": "no",
        ".hidden/e.txt": "no",
        "empty.txt": " \n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = list(sources.documents(TextFolder(), texts_in(tmp_path)))
    assert [(document.name, document.text) for document in found] == [
        ("a.txt", "ay"),
        ("b.md", "bee"),
        ("sub/c.RST", "sea"),
    ]


def test_a_fingerprint_follows_names_and_bytes_of_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "a.txt").write_text("one")
        (folder / "b.txt").write_text("two")
    first = sources.fingerprint(TextFolder(), texts_in(here))
    assert sources.fingerprint(TextFolder(), texts_in(there)) == first
    (here / "other.bin").write_bytes(b"not read")
    assert sources.fingerprint(TextFolder(), texts_in(here)) == first
    (here / "a.txt").write_text("two")
    (here / "b.txt").write_text("one")
    assert sources.fingerprint(TextFolder(), texts_in(here)) != first
    (there / "b.txt").rename(there / "c.txt")
    assert sources.fingerprint(TextFolder(), texts_in(there)) != first


def test_identified_fills_in_what_is_empty_and_keeps_what_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    execution = texts_in(tmp_path)
    filled = sources.identified(TextFolder(), execution)
    assert filled.content == sources.fingerprint(TextFolder(), execution)
    assert sources.identified(TextFolder(content="a" * 64), execution).content == "a" * 64
    hub = HubDataset(dataset="someone/words", revision="0" * 40)
    assert sources.identified(hub, execution) == hub


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (None, b"", "has none"),
        ("a.py", b"text", "has none"),
        ("a.txt", b"caf\xe9", "a.txt is not, at byte 3"),
    ],
)
def test_a_folder_without_text_is_a_wrong_setting(tmp_path: Path, name: str | None, data: bytes, message: str) -> None:
    if name:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SettingError, match=message):
        list(sources.documents(TextFolder(), texts_in(tmp_path)))


def test_a_folder_that_is_not_named_or_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="text_folder is empty"):
        sources.fingerprint(TextFolder(), Execution())
    with pytest.raises(SettingError, match="is not there"):
        sources.fingerprint(TextFolder(), texts_in(tmp_path / "missing"))
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(SettingError, match="is a file"):
        sources.fingerprint(TextFolder(), texts_in(tmp_path / "file.txt"))
