"""What goes on after a kill: the whole state of a coder in training, kept with its unfinished work.

    slot-0.safetensors, slot-1.safetensors    tensors, written in turn
    state.json                                which slot counts, its sha256, the step to do next, the curve so far

In: a coder's state between two steps. Out: the same state, to the bit. Invariant: `state.json` is written last and
whole, and never names the slot that is being written, so a kill at any moment leaves the state before or the one after;
a piece that is not what `state.json` says, or is another coder's, is refused by name.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlrewrite.artifacts import Work, digest
from nlrewrite.coders.ranks import Ranks
from nlrewrite.errors import CorruptArtifact
from nlrewrite.execution import Execution
from nlrewrite.specs import CoderSpec

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

STATE = "state.json"
SLOTS = ("slot-0.safetensors", "slot-1.safetensors")
BITS = ("threads", "device", "batch_tokens", "fast_products")
"""What the last bits of a result may depend on: only with these as they were is a resumed run the unbroken one."""


@dataclass(frozen=True)
class Saved:
    """A coder between two steps."""

    step: int
    """The next one to do."""
    tensors: "dict[str, Tensor]"
    curve: list[dict[str, Any]]


class _State(BaseModel):
    """`state.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str
    """Digest of the coder's spec."""
    step: int = Field(ge=0)
    slot: int = Field(ge=0, lt=len(SLOTS))
    bytes: int
    sha256: str
    execution: dict[str, bool | int | str]
    curve: list[dict[str, Any]]


class Slots:
    """The saved states of one coder."""

    def __init__(self, work: Work, spec: CoderSpec, execution: Execution, processes: int = 1) -> None:
        self._work, self._spec = work, digest(spec)
        self._execution = execution.model_dump(include=set(BITS)) | {"processes": processes}
        self._next = 0

    def load(self) -> Saved | None:
        """The latest state; None if there is none. A CorruptArtifact if it is not what was saved."""
        from safetensors.torch import load

        told = self._work.read(STATE)
        if told is None:
            return None
        try:
            state = _State.model_validate_json(told)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "JSON"
            raise self._refused(STATE, f"it cannot be read: {where}: {problem['msg']}") from error
        if state.spec != self._spec:
            raise self._refused(STATE, f"it is of the coder with spec {state.spec}, and this one has {self._spec}")
        piece = SLOTS[state.slot]
        data = self._work.read(piece)
        if data is None:
            raise self._refused(piece, f"it is missing, and {STATE} counts on it")
        if len(data) != state.bytes:
            raise self._refused(piece, f"it has {len(data)} bytes where {STATE} says {state.bytes}")
        if (found := hashlib.sha256(data).hexdigest()) != state.sha256:
            raise self._refused(piece, f"its sha256 is {found[:16]}... where {STATE} says {state.sha256[:16]}...")
        if state.execution != self._execution:
            log.warning(
                "training goes on with %s, and was begun with %s: the last bits may differ from those of an unbroken "
                "run",
                _spelled(self._execution),
                _spelled(state.execution),
            )
        self._next = 1 - state.slot
        self._work.write(SLOTS[self._next], b"")  # so that it is cleared with the rest, whoever wrote it
        return Saved(state.step, load(data), state.curve)

    def save(self, saved: Saved) -> None:
        from safetensors.torch import save

        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in saved.tensors.items()})
        self._work.write(SLOTS[self._next], data)
        state = _State(
            spec=self._spec,
            step=saved.step,
            slot=self._next,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            execution=self._execution,
            curve=saved.curve,
        )
        self._work.write(STATE, json.dumps(state.model_dump()).encode())
        self._next = 1 - self._next

    def _refused(self, piece: str, why: str) -> CorruptArtifact:
        return CorruptArtifact(
            f"training cannot go on from {self._work.where(piece)}: {why}. To train this coder from the start, remove "
            f"{self._work.where(STATE)} and run again"
        )


def kept(slots: Slots | None, ranks: Ranks) -> Saved | None:
    """The latest state, as the one process that keeps it tells all of them."""
    import torch

    saved = slots.load() if slots is not None else None
    if ranks.world == 1:
        return saved
    shapes = saved and {name: (str(each.dtype), list(each.shape)) for name, each in saved.tensors.items()}
    told = ranks.told(saved and {"step": saved.step, "curve": saved.curve, "shapes": shapes})
    if told is None:
        return None
    tensors = (
        saved.tensors
        if saved is not None
        else {
            name: torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
            for name, (dtype, shape) in told["shapes"].items()
        }
    )
    ranks.broadcast([tensors[name] for name in sorted(tensors)])
    return Saved(told["step"], tensors, told["curve"])


def _spelled(execution: dict[str, bool | int | str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in execution.items())
