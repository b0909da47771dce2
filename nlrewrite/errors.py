"""Every way a command can fail, each with the exit code that says which kind it was.

0 done, 1 a step failed (a defect or the machine), 2 a setting is wrong, 3 something asked for is not there yet,
4 the store refuses or is down, 5 an artifact is damaged, 6 a model or dataset cannot be reached.
Invariant: a message names the value, the bound and what to do next.
"""


class SettingError(ValueError):
    """A setting the user gave cannot be meant: out of bounds, unknown, or contradicting another one."""

    exit_code = 2


class NotYet(RuntimeError):
    """A capability that a profile asks for and this version does not have."""

    exit_code = 3


class StoreError(OSError):
    """The store cannot be read or written. Never a cache miss."""

    exit_code = 4


class CorruptArtifact(StoreError):
    """A file of an artifact is not what its manifest says."""

    exit_code = 5


class Unreachable(OSError):
    """A model, dataset or folder outside the store cannot be reached."""

    exit_code = 6
