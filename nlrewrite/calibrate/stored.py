"""Fitted calibrators as files: arrays in `calibrators.safetensors`, all that is said about them in `calibration.json`.

In: fitted calibrators. Out: two files, and back. Invariant: what is read back predicts the same bits; no pickle.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nlrewrite.artifacts import Folder
from nlrewrite.calibrate.fitted import Fitted
from nlrewrite.simulate.said import Reading

ARRAYS, ABOUT = "calibrators.safetensors", "calibration.json"
_OWN = ("mean", "gain", "decoder_LE")


def save(
    fitted: Mapping[str, Fitted], folder: Path, about: Mapping[str, Mapping[str, object]] | None = None, **more: object
) -> None:
    """Write calibrators by name; `about` adds columns to the row of each, `more` keys beside the rows."""
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    rows: list[dict[str, object]] = []
    for name, each in fitted.items():
        own = {"mean": each.mean, "gain": each.gain, "decoder_LE": each.decoder_LE}
        for label, array in {**{f"map.{label}": array for label, array in each.arrays.items()}, **own}.items():
            if array is not None:
                arrays[f"{name}/{label}"] = np.ascontiguousarray(array)
        row = {"calibrator": name, "information": each.information, "map": each.map, "reading": asdict(each.reading)}
        rows.append({**row, "notes": each.notes, **(about or {}).get(name, {})})
    save_file(arrays, folder / ARRAYS)
    (folder / ABOUT).write_text(json.dumps({"calibrators": rows, **more}, indent=1))


def read_fitted(folder: Folder | Path) -> dict[str, Fitted]:
    """The calibrators by name, in the order in which they were asked for."""
    from safetensors.numpy import load_file

    at = (lambda name: folder / name) if isinstance(folder, Path) else folder.path
    arrays = load_file(at(ARRAYS))
    found: dict[str, Fitted] = {}
    for row in read_about(folder)["calibrators"]:
        start = f"{row['calibrator']}/"
        own = {label.removeprefix(start): array for label, array in arrays.items() if label.startswith(start)}
        found[row["calibrator"]] = Fitted(
            name=row["calibrator"],
            information=row["information"],
            map=row["map"],
            arrays={label.removeprefix("map."): array for label, array in own.items() if label not in _OWN},
            mean=own["mean"],
            gain=own["gain"],
            reading=Reading(**row["reading"]),
            decoder_LE=own.get("decoder_LE"),
            notes=row["notes"],
        )
    return found


def read_about(folder: Folder | Path) -> dict[str, Any]:
    path = folder / ABOUT if isinstance(folder, Path) else folder.path(ABOUT)
    return json.loads(path.read_text())


def read_calibrated(folder: Folder) -> tuple[dict[str, Fitted], str]:
    """The calibrators by name, and the chosen one's name."""
    return read_fitted(folder), read_about(folder)["chosen"]
