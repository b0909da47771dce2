"""Make coders: train them here, or take them from elsewhere, as their specs say.

In: a spec of a coder, or jobs with several, and what they are made from. Out: one coder a folder. Invariant: whoever
builds need not know where a coder comes from; what training or foreign files need is loaded only when it is used.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nlrewrite.artifacts import Folder
from nlrewrite.coding import FolderCoder, HubCoder
from nlrewrite.specs import CoderSpec

if TYPE_CHECKING:
    from nlrewrite.steps import Job, Running


def build(
    spec: CoderSpec | HubCoder | FolderCoder, inputs: Mapping[str, Folder], out: Path, running: "Running"
) -> None:
    if isinstance(spec, CoderSpec):
        from nlrewrite.coders import train

        train.build(spec, inputs, out, running)
    else:
        from nlrewrite.coders import published

        published.build(spec, dict(inputs), out, running)


def build_together(jobs: "Sequence[Job]", inputs: Mapping[str, Folder], running: "Running") -> None:
    """Train several coders on as few passes of the subject as their settings allow."""
    from nlrewrite.coders import train

    train.build_together(jobs, inputs, running)
