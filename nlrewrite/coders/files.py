"""Which files a coder from elsewhere consists of, by their names, and one hash over exactly those.

In: a folder or file, on this machine or in a repository. Out: names, and a sha256. Invariant: what is not named here
is read by no format, so that equal hashes give equal coders wherever the files lie; nothing heavy is loaded for that.
"""

import hashlib
from pathlib import Path, PurePosixPath

from nlrewrite.coding import FolderCoder
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution

RECORD = "record.json"
BESIDE: dict[str, tuple[str, ...]] = {
    "sae.safetensors": ("cfg.json", RECORD),
    "sae_weights.safetensors": ("cfg.json", "sparsity.safetensors", "activation_scaler.json", RECORD),
    "params.npz": (),
    "params.safetensors": ("config.json",),
    "ae.pt": ("config.json",),
}
"""Names of files with weights, and what is read beside each where it is there. Another *.pt stands alone."""
PICKLE, LAYER = "*.pt", "{layer}"


def patterns(path: str) -> list[str]:
    """Which files of a repository the coder at `path` may consist of; `path` is a folder, a file or empty."""
    name = PurePosixPath(path).name
    if PurePosixPath(path).suffix in (".safetensors", ".npz", ".pt"):
        folder, names = str(PurePosixPath(path).parent), (name, *BESIDE.get(name, ()))
    else:
        folder, names = path.strip("/") or ".", (*BESIDE, *sorted({each for some in BESIDE.values() for each in some}))
    return [each if folder == "." else f"{folder}/{each}" for each in names]


def files(path: Path) -> list[Path]:
    """The files that the coder in a folder or file consists of."""
    if not path.exists():
        raise Unreachable(f"there is no {path}. Change --coder-folder to a folder or file that holds a coder")
    if path.is_file():
        found = [path, *(path.parent / name for name in BESIDE.get(path.name, ()))]
    else:
        weights = [path / name for name in BESIDE if (path / name).is_file()] or sorted(path.glob(PICKLE))
        found = [each for file in weights for each in (file, *(path / name for name in BESIDE.get(file.name, ())))]
    there = sorted({each for each in found if each.is_file()})
    if not there:
        raise SettingError(
            f"{path} holds no coder: none of {', '.join(BESIDE)} and no {PICKLE}. Change --coder-folder to the folder "
            f"of one coder"
        )
    return there


def fingerprint(root: Path, path: str = "") -> str:
    """sha256 over the names and bytes of the coder's files; where `path` leaves its layer open, of those of all layers.

    One coder's files count by their own names, several coders' by their places in the folder.
    """
    places = sorted(root.glob(path.replace(LAYER, "*"))) if LAYER in path else [root / path]
    if not places:
        raise Unreachable(f"there is no {root / path} for any layer. Change --set coder.path or --coder-folder")
    total = hashlib.sha256()
    for place in places:
        for each in files(place):
            name = each.relative_to(root).as_posix() if LAYER in path else each.name
            with open(each, "rb") as file:
                total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def among_layers(content: str, root: Path, path: str, layer: int) -> bool:
    """Whether `content` is the fingerprint of the files of all layers, and the coder at `path` is that of `layer`."""
    number, at = str(layer), [begin for begin in range(len(path)) if path.startswith(str(layer), begin)]
    opened = [path[:begin] + LAYER + path[begin + len(number) :] for begin in at]
    return any(fingerprint(root, each) == content for each in opened)


def folder(execution: Execution) -> Path:
    """Where local coders lie."""
    if execution.coder_folder is None:
        raise SettingError("coder.kind is folder and no folder is given. Name one with --coder-folder")
    return Path(execution.coder_folder)


def identified(spec: FolderCoder, execution: Execution) -> FolderCoder:
    """`spec` with its content filled in; one that names a content already stays as it is."""
    return spec if spec.content else spec.model_copy(update={"content": fingerprint(folder(execution), spec.path)})
