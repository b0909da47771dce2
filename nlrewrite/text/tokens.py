"""Token ids: one long stream of the train split, and windows of the splits on which things are explained and measured.

In: a corpus and a subject's tokenizer. Out: `train.safetensors` (tokens), `<split>.safetensors` (tokens, lengths,
document, group, start) and `tokens.json` (counts). Invariant: nothing is fitted here; every label of a document is the
label of at most one window; a window of length n holds n inputs and n labels, `tokens[w, t + 1]` being the label of
`tokens[w, t]`, and is filled up with the end-of-text id behind them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.progress import Progress
from nlrewrite.seeds import generator
from nlrewrite.specs import SPLITS, Split, TokensSpec
from nlrewrite.steps import Running
from nlrewrite.text.corpus import Documents, read_documents
from nlrewrite.text.tokenizer import end_of_text, load_tokenizer, token_texts

DOCUMENTS_AT_ONCE = 512

__all__ = ["Windows", "build", "cut", "read_stream", "read_windows", "token_texts"]


@dataclass(frozen=True)
class Windows:
    """W windows of one split. All arrays are int32 and belong together row by row."""

    tokens: np.ndarray
    """[W, window + 1]; behind the first lengths[w] + 1 ids there is only end-of-text."""
    lengths: np.ndarray
    """[W]: input positions, which is also the number of labels."""
    document: np.ndarray
    """[W]: number of the document in the corpus."""
    group: np.ndarray
    """[W]: the document's group, the cluster of every interval."""
    start: np.ndarray
    """[W]: where the window starts in its document; 0 is the end-of-text token before the first word."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: np.ndarray | slice) -> "Windows":
        return Windows(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def build(spec: TokensSpec, inputs: Mapping[str, Folder], out: Path, running: Running) -> None:
    for split, limit in spec.limits.items():
        if limit < 1:
            raise SettingError(f"tokens.limits must be at least 1: {split} has {limit}. Raise it, or leave it out")
    folder = inputs["subject"].root()
    tokenizer, eot = load_tokenizer(folder), end_of_text(folder)
    counts: dict[str, dict[str, int]] = {}
    groups: dict[str, set[int]] = {}
    for split in SPLITS:
        documents = read_documents(inputs["corpus"], split)
        groups[split] = set(documents.group.tolist())
        ids = encode(tokenizer, documents.text, split, running.progress)
        if split == "train":
            stream = train_stream(spec, ids, eot)
            _save(out, split, {"tokens": stream})
            counts[split] = {"documents": len(ids), "tokens": len(stream)}
        else:
            windows = cut(spec, split, documents, ids, eot)
            if not len(windows):
                raise SettingError(
                    f"every split needs a window: none of the {len(ids)} documents of {split} has "
                    f"tokens.shortest={spec.shortest} tokens. Lower --set tokens.shortest, or give more text"
                )
            _save(out, split, {field.name: getattr(windows, field.name) for field in fields(windows)})
            counts[split] = {
                "documents": len(np.unique(windows.document)),
                "groups": len(np.unique(windows.group)),
                "windows": len(windows),
                "tokens": int(windows.lengths.sum()),
            }
    assert sum(len(each) for each in groups.values()) == len(set().union(*groups.values())), "a group is in two splits"
    summary = {"end_of_text": eot, "vocabulary": len(token_texts(folder)), "window": spec.window, "splits": counts}
    (out / "tokens.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def read_windows(folder: Folder, split: Split) -> Windows:
    from safetensors.numpy import load_file

    assert split != "train", "the train split is one stream: read_stream"
    return Windows(**load_file(folder.path(f"{split}.safetensors")))


def read_stream(folder: Folder) -> np.ndarray:
    """int32: the train documents one after another, an end-of-text id before each."""
    from safetensors.numpy import load_file

    return load_file(folder.path("train.safetensors"))["tokens"]


# -- within -----------------------------------------------------------------------------------------------------------


def encode(tokenizer: Tokenizer, texts: list[str], split: Split, progress: Progress) -> list[np.ndarray]:
    """The ids of each text, without special tokens."""
    ids: list[np.ndarray] = []
    with progress.stage(f"tokenize {split}", total=len(texts)) as advance:
        for begin in range(0, len(texts), DOCUMENTS_AT_ONCE):
            some = texts[begin : begin + DOCUMENTS_AT_ONCE]
            encoded = tokenizer.encode_batch_fast(some, add_special_tokens=False)
            ids += [np.array(each.ids, dtype=np.int32) for each in encoded]
            advance(len(some))
    return ids


def train_stream(spec: TokensSpec, ids: list[np.ndarray], eot: int) -> np.ndarray:
    """All documents, or as many, drawn by the seed, as fill limit x window ids; the last one drawn is cut to fit."""
    limit = spec.limits.get("train")
    taken = [np.append(np.int32(eot), each) for each in ids]
    if limit is not None:
        room = limit * spec.window
        for document in generator(spec.seed, "tokens", "train").permutation(len(taken)):
            taken[document] = taken[document][:room]
            room -= len(taken[document])
    return np.concatenate(taken).astype(np.int32)


def cut(spec: TokensSpec, split: Split, documents: Documents, ids: list[np.ndarray], eot: int) -> Windows:
    """Windows of documents, in their order; where there are too many, the seed chooses which stay."""
    rows, lengths, document, group, start = [], [], [], [], []
    for number, its_group, text in zip(documents.document, documents.group, ids, strict=True):
        prefixed = np.append(np.int32(eot), text)
        starts = np.arange(0, len(text), spec.window)
        starts = starts[np.minimum(spec.window, len(text) - starts) >= spec.shortest]
        starts = _at_most(starts, spec.windows_per_document, spec.seed, split, "document", int(number))
        for begin in starts:
            row = prefixed[begin : begin + spec.window + 1]
            rows.append(np.pad(row, (0, spec.window + 1 - len(row)), constant_values=eot))
            lengths.append(len(row) - 1)
            start.append(begin)
        document += [number] * len(starts)
        group += [its_group] * len(starts)
    kept = np.arange(len(rows))
    if split in spec.limits:
        kept = _at_most(kept, spec.limits[split], spec.seed, split, "limit")
    columns = {"lengths": lengths, "document": document, "group": group, "start": start}
    tokens = np.array(rows, dtype=np.int32).reshape(len(rows), spec.window + 1)
    return Windows(tokens, **{name: np.array(column, dtype=np.int32) for name, column in columns.items()})[kept]


def _at_most(items: np.ndarray, most: int, seed: int, *path: str | int) -> np.ndarray:
    """`items`, or `most` of them drawn by the seed, in their order."""
    if len(items) <= most:
        return items
    return items[np.sort(generator(seed, "tokens", *path).choice(len(items), size=most, replace=False))]


def _save(out: Path, split: Split, arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, out / f"{split}.safetensors")
