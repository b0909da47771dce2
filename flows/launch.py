"""Run a flow from this checkout, with a Prefect server around it: what `nlrewrite run`, `study` and `make run` do.

In: the flow and its parameters as one JSON object: flow, profile, overrides, refresh, execution. Out: the run in the
server's history, the tables on the terminal, and an exit code that says which kind of failure it was. Invariant:
settings are checked before anything is started, and when this ends, the history is complete and no server is left.

    python -m flows.launch '{"profile": "smoke", "refresh": ["coder"]}'
"""

import importlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows import server
from nlrewrite import pipeline, printing, terminal
from nlrewrite.composition import WALKS
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides, require_runnable, settled
from nlrewrite.progress import Progress

if TYPE_CHECKING:
    from nlrewrite.pipeline import Outcome


class Parameters(BaseModel):
    """Which flow, and its parameters; a study's probes are among the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow: Literal["rewrite", "study", "train-coder", "sweep", "replace"] = "rewrite"
    profile: str = "tiny"
    overrides: Overrides = Overrides()
    refresh: list[str] = Field(default_factory=list)
    execution: Execution = Execution()


def parse(text: str) -> Parameters:
    """`text` as parameters that the flow will accept, or a SettingError that says what is wrong with them."""
    try:
        parameters = Parameters.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the parameters"
        raise SettingError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {first['input']!r}") from error
    spec = settled(parameters.profile, parameters.overrides)
    walk = parameters.flow if parameters.flow in WALKS else "rewrite"
    require_runnable(parameters.profile, spec, walk)
    pipeline.check_refresh(parameters.refresh, pipeline.labels(spec, walk))
    return parameters


def launch(parameters: Parameters, progress: Progress) -> "Outcome":
    """Run the flow on a server that is adopted or started for it."""
    with server.attached() as at:
        importlib.import_module("flows.study")  # this takes as long as the server takes to start

        server.wait_until_healthy(at)
        return run(parameters, progress)


def run(parameters: Parameters, progress: Progress) -> "Outcome":
    """Run the flow in this process, on the server that `PREFECT_API_URL` names."""
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows import coding
    from flows.rewrite import rewrite
    from flows.study import study
    from tasks.progress import beside

    arguments: dict[str, Any] = {name: getattr(parameters, name) for name in Parameters.model_fields if name != "flow"}
    flow: Any = {"rewrite": rewrite, "study": study, **coding.FLOWS}[parameters.flow]
    if parameters.flow == "study":
        arguments["probes"] = list(settled(parameters.profile, parameters.overrides).probes)
    # Heartbeats tell a worker that a run on another machine is alive; here they would only add a second to every run.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}), beside(progress):
        try:
            outcome: Any = flow(**arguments)
            return outcome
        finally:
            APILogHandler().flush()


def hush(record: logging.LogRecord) -> bool:
    """Whether a log record belongs on the terminal. What Prefect says of runs is in its UI; failures are told once."""
    if record.name.startswith(("prefect.flow_runs", "prefect.task_runs")):
        return False
    return not record.name.startswith("prefect") or record.levelno >= logging.WARNING


def main(arguments: list[str]) -> int:
    output = terminal.Output.read(os.environ)
    silent = output.quiet or output.json
    terminal.show_log(logging.WARNING if silent and not output.verbose else logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(hush)

    def act() -> int:
        parameters = parse(arguments[0] if arguments else "{}")
        print(printing.finished(launch(parameters, terminal.progress(silent)), output))
        return 0

    return terminal.guarded(act, output)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the server in an orderly way, as after Ctrl-C
    raise SystemExit(main(sys.argv[1:]))
