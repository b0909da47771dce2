"""Whether a flow run's history is whole: every task that was called is recorded with a final state.

Task runs travel to the server as events and arrive a little after the tasks ended; a server that is ended before has
lost them for good. In: the flow run and the number of tasks it called. Out: nothing, once all are recorded.
Invariant: a run whose history could not be completed says so; it is never passed over in silence.
"""

import logging
import time
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TERMINAL_STATES

log = logging.getLogger("nlrewrite.history")

WAIT_SECONDS = 60.0


def recorded(flow_run_id: UUID) -> int:
    """Task runs of the flow run that the server knows to be over."""
    body = {
        "flow_runs": {"id": {"any_": [str(flow_run_id)]}},
        "task_runs": {"state": {"type": {"any_": sorted(TERMINAL_STATES)}}},
    }
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/task_runs/count", json=body)
        answer.raise_for_status()
        return int(answer.json())


def wait_until_whole(flow_run_id: UUID, called: int, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while (there := recorded(flow_run_id)) < called:
        if time.monotonic() > deadline:
            log.warning("the server has recorded %d of the %d task runs of this run", there, called)
            return
        time.sleep(0.1)
