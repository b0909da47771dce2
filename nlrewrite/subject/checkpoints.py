"""The subject as it was on its way: checkpoints of its training, kept in its artifact or on the hub.

In: a subject artifact and, for a model from the hub, names of revisions such as step1000. Out: checkpoints by rising
step, each with the full commit it was read at. Invariant: a name is resolved to a commit once, before anything is
measured, and the weights are those of that commit, whatever the name points to later.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.subject import load

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Checkpoint:
    """Weights in a file of our own, or a model of the hub at a commit."""

    step: int
    weights: Path | None = None
    model: str = ""
    name: str = ""
    """The revision's name on the hub."""
    commit: str = ""
    dtype: str = "float32"

    def load(self, subject: "nn.Module", execution: Execution) -> "nn.Module":
        """The checkpoint as a model; weights of our own are put into `subject`, which changes it."""
        if self.weights is None:
            root = load.download(self.model, self.commit, ("config.json", load.INDEX, "model*.safetensors"))
            load.weights(root)
            return load.model(root, execution, self.dtype)
        from safetensors.torch import load_file

        subject.load_state_dict(load_file(self.weights))
        return subject


def checkpoints(subject: Folder, names: tuple[str, ...] = ()) -> list[Checkpoint]:
    """What there is of the subject's training, by rising step; `names` are revisions of a hub subject."""
    about = json.loads(subject.path(load.REFERENCE).read_text())
    if about["kind"] == "hub":
        return sorted(
            (_resolved(about["model"], about["dtype"], name, step) for name, step in steps(names).items()),
            key=lambda each: each.step,
        )
    if names:
        raise SettingError(
            f"evaluate.checkpoints names revisions of a model on the hub, and this subject is none: "
            f"subject.kind={about['kind']}, checkpoints={', '.join(names)}. Leave --set evaluate.checkpoints empty"
        )
    kept = [entry.path for entry in subject.manifest.files if entry.path.startswith("checkpoints/step-")]
    found = [Checkpoint(int(Path(name).stem.removeprefix("step-")), subject.path(name)) for name in kept]
    return sorted(found, key=lambda each: each.step)


def steps(names: tuple[str, ...]) -> dict[str, int]:
    """The training step that each revision's name ends with."""
    found: dict[str, int] = {}
    for name in names:
        number = re.search(r"(\d+)$", name)
        if number is None:
            raise SettingError(
                f"a checkpoint's name must end with its training step, as step1000 does: {name!r}. "
                f"Change --set evaluate.checkpoints"
            )
        step = int(number.group(1))
        if step in found.values():
            raise SettingError(f"two checkpoints are of step {step}: {', '.join(names)}. Name each step once")
        found[name] = step
    if len(found) == 1:
        raise SettingError(
            f"a loss lies between checkpoints, so it takes two at least: evaluate.checkpoints={names[0]}. "
            f"Name another, or none"
        )
    return found


def _resolved(model: str, dtype: str, name: str, step: int) -> Checkpoint:
    commit = load.download(model, name, ("config.json",)).name
    return Checkpoint(step, None, model, name, commit, dtype)
