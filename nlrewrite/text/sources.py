"""The documents of a source, and a hash over exactly what they are read from.

In: a source of `specs.py` and the execution that says where things lie. Out: named texts in a fixed order. Invariant:
equal fingerprints give equal documents in equal order, whatever the machine; nothing is read but what is hashed.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.specs import HubDataset, PythonDocs, TextFolder
from nlrewrite.text.documents import Document, hash_files, visible_files
from nlrewrite.text.hub import hub_documents, local_folder

Source = PythonDocs | TextFolder | HubDataset
AnySource = TypeVar("AnySource", PythonDocs, TextFolder, HubDataset, Source)

SHORTEST_DOCSTRING = 80
LEFT_OUT = ("test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo")
TEXT_SUFFIXES = (".txt", ".md", ".rst")
TOPICS = "pydoc_data/topics.py"


def fingerprint(source: Source, execution: Execution) -> str:
    """sha256 of what the documents are read from; for a dataset on a hub, of the name and revision it has there."""
    match source:
        case PythonDocs():
            root = standard_library()
            return hash_files(root, [*docstring_files(root), root / TOPICS])
        case TextFolder():
            root = text_folder(execution)
            return hash_files(root, text_files(root))
        case HubDataset():
            if root := local_folder(source):
                return hash_files(root, visible_files(root))
            return hashlib.sha256(f"{source.dataset}@{source.revision}".encode()).hexdigest()


def identified(source: AnySource, execution: Execution) -> AnySource:
    """`source` with its content filled in. One that names a content already, or a revision, stays as it is."""
    if isinstance(source, HubDataset) or source.content:
        return source
    return source.model_copy(update={"content": fingerprint(source, execution)})


def documents(source: Source, execution: Execution) -> Iterator[Document]:
    """Every document that is more than white space, in the order of the source."""
    match source:
        case PythonDocs():
            found = python_documents(standard_library())
        case TextFolder():
            found = folder_documents(text_folder(execution))
        case HubDataset():
            found = hub_documents(source)
    return (document for document in found if document.text and not document.text.isspace())


# -- the documentation of Python --------------------------------------------------------------------------------------


def standard_library() -> Path:
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / TOPICS).is_file():
        raise SettingError(
            f"this Python does not ship its documentation as files: {root / TOPICS} is missing. "
            f"Use another interpreter, or --set text.source.kind=folder"
        )
    return root


def docstring_files(root: Path) -> list[Path]:
    """The modules of the standard library below `root`, without its tests and without what an installation adds."""
    found = []
    for top in sorted(root.iterdir()):
        if top.stem not in sys.stdlib_module_names or top.name in LEFT_OUT or top.stem.startswith("_sysconfigdata"):
            continue
        inside = [top] if top.suffix == ".py" else sorted(top.rglob("*.py"))
        found += [path for path in inside if not set(path.relative_to(root).parts[:-1]).intersection(LEFT_OUT)]
    return [path for path in found if path.relative_to(root).as_posix() != TOPICS]


def python_documents(root: Path) -> Iterator[Document]:
    """One document for each topic of `help()`, then one for each unit of each module: see `units`."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield Document(f"help({topic!r})", topics[topic])
    for path in docstring_files(root):
        module = path.relative_to(root).as_posix()
        for name, text in units(path.read_bytes()):
            yield Document(f"{module}:{name}" if name else module, text)


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def units(source: bytes) -> Iterator[tuple[str, str]]:
    """The long docstrings of a module: its own, then those of each function and each class with all it contains.

    A class and its methods speak of the same thing in the same words, so that they are one document, not many.
    """
    tree = ast.parse(source)
    if text := long_docstring(tree):
        yield "", text
    for definition in definitions(tree):
        if texts := list(docstrings(definition)):
            yield definition.name, "\n\n".join(texts)


def definitions(node: ast.AST) -> Iterator[Definition]:
    """The outermost functions and classes below `node`, also those under an `if` or a `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield child
        else:
            yield from definitions(child)


def docstrings(definition: Definition) -> Iterator[str]:
    if text := long_docstring(definition):
        yield text
    for inner in definitions(definition):
        yield from docstrings(inner)


def long_docstring(node: ast.Module | Definition) -> str:
    text = ast.get_docstring(node) or ""
    return text if len(text) > SHORTEST_DOCSTRING else ""


# -- a folder of files ------------------------------------------------------------------------------------------------


def text_folder(execution: Execution) -> Path:
    return named_folder(execution.text_folder, "text.source.kind", "text_folder", "--text-folder")


def named_folder(name: str | None, kind: str, setting: str, option: str) -> Path:
    """The folder of text files that the execution names as `setting`, which `option` sets."""
    if not name:
        raise SettingError(f"{kind}=folder needs a folder: execution.{setting} is empty. Name one with {option} FOLDER")
    root = Path(name)
    if not root.is_dir():
        raise SettingError(
            f"execution.{setting} must be a folder: {root} is {'a file' if root.exists() else 'not there'}. "
            f"Change {option}"
        )
    if not text_files(root):
        raise SettingError(
            f"execution.{setting} must hold at least one file that ends in {', '.join(TEXT_SUFFIXES)}: "
            f"{root} has none. Change {option}"
        )
    return root


def text_files(root: Path) -> list[Path]:
    return [path for path in visible_files(root) if path.suffix.lower() in TEXT_SUFFIXES]


def folder_documents(root: Path, first: int = 0) -> Iterator[Document]:
    for path in text_files(root)[first:]:
        name = path.relative_to(root).as_posix()
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise SettingError(
                f"text files must be UTF-8: {name} is not, at byte {error.start}. Convert it, or move it out of {root}"
            ) from error
        yield Document(name, text)
