"""The documents of a Hugging Face dataset, streamed from its hub or read from a local folder.

In: a dataset id (or a folder of data files) and a revision. Out: named texts in the order of the stream, from its start
or from where a reader of it was. Invariant: the revision decides the content: a commit of the hub, or the first 40
digits of the hash over a local folder's files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.specs import HubDataset
from nlrewrite.text.documents import Document, hash_files, visible_files

_ABSENT = object()


def local_folder(source: HubDataset, section: str = "text.source") -> Path | None:
    """The folder that `source` names, if it names one. Its revision has to be that of its files.

    `section` holds the settings of `source`, to be named where one is wrong.
    """
    root = Path(source.dataset)
    if not root.is_dir():
        return None
    found = hash_files(root, visible_files(root))[:40]
    if found != source.revision:
        raise SettingError(
            f"the revision of a local dataset must be the hash of its files: {section}.revision={source.revision}, "
            f"{root} has {found}. Use --set {section}.revision={found}"
        )
    return root


def hub_documents(source: HubDataset) -> Iterator[Document]:
    for number, row in enumerate(Reading(source)):
        yield Document(f"{source.dataset}/{source.split}/{number}", text_of(row, source))


def text_of(row: dict[str, Any], source: HubDataset, section: str = "text.source") -> str:
    """The text in a row of the dataset; none is an empty one."""
    text = row.get(source.field, _ABSENT)
    if text is not None and not isinstance(text, str):
        holds = "is not there" if text is _ABSENT else f"holds a {type(text).__name__}"
        raise SettingError(
            f"{section}.field must be a column of text: {source.field!r} of {source.dataset} {holds}; "
            f"its columns are {', '.join(sorted(row))}. Change --set {section}.field"
        )
    return text or ""


class Reading:
    """The rows of the dataset's stream; Unreachable when the hub cannot be reached or does not have it."""

    def __init__(self, source: HubDataset, section: str = "text.source", first: int = 0) -> None:
        """`first` rows are passed over, and as many as the source says are read behind them."""
        import datasets

        self._source, self._section = source, section
        revision = None if local_folder(source, section) else source.revision
        with self._reaching():
            stream = datasets.load_dataset(
                source.dataset, source.config, split=source.split, revision=revision, streaming=True
            )
            self._stream = stream.skip(first).take(source.documents)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._reaching():
            yield from self._stream

    def state(self) -> dict[str, Any]:
        """Where the reading is, in words of JSON, for another one of the same rows to go on from."""
        return self._stream.state_dict()

    def go_on(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(state)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError

        any_http_error: type[Exception] = HfHubHTTPError.__bases__[0]  # of the http client that this version uses
        source, section = self._source, self._section
        try:
            yield
        except ValueError as error:
            raise SettingError(
                f"{source.dataset} cannot be read as {section} says: {error}. "
                f"Change --set {section}.config or --set {section}.split"
            ) from error
        except (any_http_error, ConnectionError, FileNotFoundError, TimeoutError) as error:
            reason = str(error).rstrip(".")
            raise Unreachable(
                f"the dataset {source.dataset} at revision {source.revision} cannot be reached: {reason}. Check the "
                f"id, the revision, the network and HF_ENDPOINT, or download it and name its folder: "
                f"--set {section}.dataset"
            ) from error
