"""How the command line shows things: progress while something is made, failures in a line, tables, figures.

In: stages of work, cells, an act that may fail. Out: bars or lines on standard error, text for standard output, an exit
code. Invariant: nothing here changes a result; a table is valid Markdown and reads well as it is.
"""

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

from nlrewrite.errors import NotYet, SettingError, StoreError, Unreachable
from nlrewrite.progress import Advance, Progress

LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Output:
    """How much is shown, and for whom. Crosses from one process to the next in an environment variable."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    VARIABLE: ClassVar[str] = "NLREWRITE_OUTPUT"

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Output":
        words = environment.get(cls.VARIABLE, "").split()
        return cls(json="json" in words, quiet="quiet" in words, verbose="verbose" in words)

    def write(self, environment: MutableMapping[str, str]) -> None:
        environment[self.VARIABLE] = " ".join(name for name in ("json", "quiet", "verbose") if getattr(self, name))


def guarded(action: Callable[[], int], output: Output) -> int:
    """What `action` returns, or the exit code of its failure, which is told in one line; verbosely, with its trace."""
    sys.excepthook = _trace_hook if output.verbose else _line_hook
    try:
        return action()
    except (SettingError, NotYet, StoreError, Unreachable) as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is finished is kept, and the next run goes on from there\n")
        return 130


def _line_hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    known = isinstance(error, SettingError | NotYet | StoreError | Unreachable)
    named = str(error) if known else f"{kind.__name__}: {error}. Run again with -v for the trace"
    sys.stderr.write(f"error: {named}{where}\n")


def _trace_hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write("".join(traceback.format_exception(kind, error, trace)))


# -- progress ---------------------------------------------------------------------------------------------------------


class LineProgress(Progress):
    """A plain line for each stage that lasts, at most every ten seconds. For logs and pipes."""

    def __init__(self, write: Callable[[str], object], every: float = LINE_SECONDS) -> None:
        self._write = write
        self._every = every

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        done, started = 0, time.monotonic()
        last = started

        def advance(amount: int = 1, note: str = "") -> None:
            nonlocal done, last
            done += amount
            now = time.monotonic()
            if now - last >= self._every:
                last = now
                self._write(f"  {label}: {done} of {total}{note and f', {note}'}, {now - started:.0f} s\n")

        yield advance


class BarProgress(Progress):
    """A bar for each stage, on a terminal. Finished stages disappear; what the log says stays above the bars."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        from rich import progress

        columns = (
            progress.TextColumn("  {task.description}"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}"),
        )
        with progress.Progress(*columns, console=self._console, transient=True) as bars:
            bar = bars.add_task(label, total=total, note="")

            def advance(amount: int = 1, note: str = "") -> None:
                bars.update(bar, advance=amount)
                if note:
                    bars.update(bar, note=note)

            yield advance


def progress(quiet: bool) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        return Progress()
    return BarProgress() if sys.stderr.isatty() else LineProgress(lambda text: sys.stderr.write(text))


class LogLines(logging.Handler):
    """Log records as lines on whatever standard error is at the time, so that bars are not torn."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


def show_log(level: int) -> None:
    """Show this package's log from `level` on, and warnings of the others."""
    handler = LogLines()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("nlrewrite").setLevel(level)


# -- tables and figures -----------------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A Markdown table whose columns also line up as plain text; columns named in `right` are aligned to the right."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        + " |"
        for row in cells
    ]
    rules = [
        "-" * (width + 1) + (":" if column in right else "-") for width, column in zip(widths, columns, strict=True)
    ]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def interval(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return number(row[name]) + (f" [{number(low)}, {number(high)}]" if low is not None and high is not None else "")


def size(count: int) -> str:
    """`count` bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
