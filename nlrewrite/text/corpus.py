"""The corpus: every document once, with the group it belongs to and the split its group went to.

In: a source. Out: `documents.parquet` (document, name, text, group, split) and `corpus.json` (counts). Invariant: a
group lies in one split, chosen by a hash of the seed and the group's own text, so that no other document moves it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.seeds import derive
from nlrewrite.specs import SPLITS, HubDataset, Shares, Split, TextSpec
from nlrewrite.steps import Running
from nlrewrite.text import duplicates, sources
from nlrewrite.text.documents import Document

DOCUMENTS = "documents.parquet"
ROWS_IN_A_GROUP = 4096


@dataclass(frozen=True)
class Documents:
    """Some documents of a corpus, in its order."""

    document: np.ndarray
    name: list[str]
    text: list[str]
    group: np.ndarray


def build(spec: TextSpec, inputs: Mapping[str, Folder], out: Path, running: Running) -> None:
    _check_content(spec, running)
    total = spec.source.documents if isinstance(spec.source, HubDataset) else 0
    read: list[Document] = []
    with running.progress.stage("read documents", total=total) as advance:
        for document in sources.documents(spec.source, running.execution):
            read.append(document)
            advance(1)
    group = duplicates.groups([document.text for document in read])
    kept = once_each(read)
    split_of = split_groups([document.text for document in read], group, spec.shares, spec.seed)
    split: list[Split] = [split_of[int(group[index])] for index in kept]
    for name in SPLITS:
        if name not in split:
            raise SettingError(
                f"every split needs a document: {name} got none of {len(split_of)} groups with text.seed={spec.seed}. "
                f"Give more text, raise --set text.shares.{name}, or change --set text.seed"
            )
    number = np.unique(group[kept], return_inverse=True)[1]
    _write(out, [read[index] for index in kept], number, split)
    counts = {name: _counts([read[i] for i in kept], number, split, name) for name in SPLITS}
    summary = {"source": spec.source.kind, "read": len(read), "duplicates": len(read) - len(kept), "splits": counts}
    (out / "corpus.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def read_documents(folder: Folder, split: Split | None = None) -> Documents:
    """The documents of `split` (or all) of a committed corpus."""
    import pyarrow.parquet as parquet

    filters = [("split", "=", split)] if split else None
    table = parquet.read_table(folder.path(DOCUMENTS), filters=filters)
    return Documents(
        document=table["document"].to_numpy(),
        name=table["name"].to_pylist(),
        text=table["text"].to_pylist(),
        group=table["group"].to_numpy(),
    )


def once_each(documents: list[Document]) -> list[int]:
    """Indices of the documents that are not equal to an earlier one, white space folded."""
    first: dict[str, int] = {}
    for index, document in enumerate(documents):
        first.setdefault(duplicates.folded(document.text), index)
    return sorted(first.values())


def split_groups(texts: list[str], group: np.ndarray, shares: Shares, seed: int) -> dict[int, Split]:
    """Each group's split, decided by the set of its texts and the seed alone."""
    members: dict[int, set[str]] = {}
    for text, number in zip(texts, group, strict=True):
        members.setdefault(int(number), set()).add(hashlib.sha256(duplicates.folded(text).encode()).hexdigest())
    bounds = np.cumsum([getattr(shares, name) for name in SPLITS])
    chosen = {}
    for number, hashes in members.items():
        draw = derive(seed, "corpus", "split", *sorted(hashes)) / 2**63
        chosen[number] = SPLITS[min(int(np.searchsorted(bounds, draw, side="right")), len(SPLITS) - 1)]
    return chosen


def _check_content(spec: TextSpec, running: Running) -> None:
    if isinstance(spec.source, HubDataset):
        return
    found = sources.fingerprint(spec.source, running.execution)
    if found != spec.source.content:
        expected = f"{spec.source.content[:12]}..." if spec.source.content else "empty"
        raise SettingError(
            f"the text is not the one this corpus is named after: text.source.content is {expected}, what is there now "
            f"has {found[:12]}.... Run again with text.source.content left out, so that it is filled in"
        )


def _write(out: Path, documents: list[Document], group: np.ndarray, split: list[Split]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = pa.table(
        {
            "document": pa.array(np.arange(len(documents)), pa.int32()),
            "name": pa.array([document.name for document in documents], pa.string()),
            "text": pa.array([document.text for document in documents], pa.string()),
            "group": pa.array(group, pa.int32()),
            "split": pa.array(split, pa.string()),
        }
    )
    parquet.write_table(table, out / DOCUMENTS, compression="zstd", row_group_size=ROWS_IN_A_GROUP)


def _counts(documents: list[Document], group: np.ndarray, split: list[Split], name: Split) -> dict[str, int]:
    inside = [index for index, each in enumerate(split) if each == name]
    return {
        "documents": len(inside),
        "groups": len(set(group[inside].tolist())),
        "characters": sum(len(documents[index].text) for index in inside),
    }
