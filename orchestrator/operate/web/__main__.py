"""`python -m orchestrator.operate.web WORKSPACE`: what `serve` starts; the door comes on standard input, as JSON.

Neither the command line nor the environment holds the token: other users read the one, and the code servers, and with
them the trainings, would inherit the other.
"""

from __future__ import annotations

import sys

import uvicorn

from orchestrator.errors import OrchestratorError
from orchestrator.operate.home import dagster_home
from orchestrator.operate.signals import unwind_on_signals
from orchestrator.operate.web.door import Door
from orchestrator.operate.web.gate import Gate
from orchestrator.operate.web.login import Attempts, Login
from orchestrator.operate.web.tokens import MachineTokens
from orchestrator.operate.web.webserver import dagster_app


def main(workspace: str) -> int:
    """Serve until a signal; return the exit status."""
    unwind_on_signals()
    door = Door.from_json(sys.stdin.read())
    with dagster_app(workspace, code_server_log_level="warning") as app:
        gate = Gate(app, door=door, login=Login(door, MachineTokens(dagster_home())), attempts=Attempts())
        uvicorn.run(
            gate,
            host=door.host,
            port=door.port,
            log_level="warning",
            workers=1,  # whatever WEB_CONCURRENCY says: more of them need another way to hand over the application
            access_log=False,  # it would hold the token of the first request
            proxy_headers=False,  # by default uvicorn believes what any program on this machine says of TLS
            server_header=False,
            timeout_graceful_shutdown=5,  # less than `serve` waits before it kills
            ssl_certfile=door.certificate,
            ssl_keyfile=door.key,
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except OrchestratorError as error:
        sys.stderr.write(f"orchestrator: {error}\n")
        sys.exit(1)
