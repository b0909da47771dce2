"""The documents of a Hugging Face dataset, streamed from its hub or read from a local folder.

In: a dataset id (or a folder of data files) and a revision. Out: named texts in the order of the stream. Invariant: the
revision decides the content: a commit of the hub, or the first 40 digits of the hash over a local folder's files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.specs import HubDataset
from nlrewrite.text.documents import Document, hash_files, visible_files

_ABSENT = object()


def local_folder(source: HubDataset) -> Path | None:
    """The folder that `source` names, if it names one. Its revision has to be that of its files."""
    root = Path(source.dataset)
    if not root.is_dir():
        return None
    found = hash_files(root, visible_files(root))[:40]
    if found != source.revision:
        raise SettingError(
            f"the revision of a local dataset must be the hash of its files: text.source.revision={source.revision}, "
            f"{root} has {found}. Use --set text.source.revision={found}"
        )
    return root


def hub_documents(source: HubDataset) -> Iterator[Document]:
    for number, row in enumerate(rows(source)):
        text = row.get(source.field, _ABSENT)
        if text is not None and not isinstance(text, str):
            holds = "is not there" if text is _ABSENT else f"holds a {type(text).__name__}"
            raise SettingError(
                f"text.source.field must be a column of text: {source.field!r} of {source.dataset} {holds}; "
                f"its columns are {', '.join(sorted(row))}. Change --set text.source.field"
            )
        yield Document(f"{source.dataset}/{source.split}/{number}", text or "")


def rows(source: HubDataset) -> Iterator[dict[str, Any]]:
    """The first rows of the dataset's stream; Unreachable when the hub cannot be reached or does not have it."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    any_http_error: type[Exception] = HfHubHTTPError.__bases__[0]  # of the http client that this version uses
    revision = None if local_folder(source) else source.revision
    try:
        stream = datasets.load_dataset(
            source.dataset, source.config, split=source.split, revision=revision, streaming=True
        )
        yield from stream.take(source.documents)
    except ValueError as error:
        raise SettingError(
            f"{source.dataset} cannot be read as text.source says: {error}. "
            f"Change --set text.source.config or --set text.source.split"
        ) from error
    except (any_http_error, ConnectionError, FileNotFoundError, TimeoutError) as error:
        reason = str(error).rstrip(".")
        raise Unreachable(
            f"the dataset {source.dataset} at revision {source.revision} cannot be reached: {reason}. Check the id, "
            f"the revision, the network and HF_ENDPOINT, or download it and name its folder: --set text.source.dataset"
        ) from error
