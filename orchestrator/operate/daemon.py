"""`python -m orchestrator.operate.daemon WORKSPACE [OPTIONS]`: what `serve` starts: Dagster's daemon, if no other runs.

It ends with the `serve` that started it, however that ends: its standard input is closed then.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from orchestrator import log_format
from orchestrator.errors import OrchestratorError
from orchestrator.operate.home import dagster_home
from orchestrator.storage.lease import LOST, await_lease, lease_of

STOP_SECONDS = 10.0
"""What the daemon gets to end by itself when `serve` is gone; then others may take over."""


AS_JSON = ("--log-format", "json")
"""Options of `dagster-daemon run`."""


def main(workspace: str, *options: str) -> int:
    """Run the daemon until a signal; return the exit status.

    Args:
        workspace: Dagster's workspace.yaml.
        options: more options of `dagster-daemon run`.
    """
    if AS_JSON[-1] in options:
        log_format.use_json(level=logging.WARNING)
        sys.stdout = sys.stderr  # where Dagster's loggers write; that of its children stays what it is
    else:
        logging.getLogger("orchestrator.storage").addHandler(logging.StreamHandler())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lease = lease_of(dagster_home())
    await_lease(lease, say=_say)
    try:
        # Only now, because who stands by does without: 100 MB.
        from dagster._daemon.cli import run_command  # noqa: TID251 - what the program dagster-daemon runs

        lease.keep(on_loss=_end_at_once)
        run_command.main(
            ["--workspace", workspace, "--code-server-log-level", "warning", *options],
            prog_name="dagster-daemon run",
            standalone_mode=False,
        )
    finally:
        lease.release()
    return 0


def _end_with_parent() -> None:
    """Wait until our standard input is closed, and end."""
    while os.read(0, 1 << 10):
        pass
    _say("Ending Dagster's daemon: `serve` is gone")
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(STOP_SECONDS)
    os._exit(1)


def _end_at_once() -> None:
    """Do nothing more: another daemon works on this database."""
    _say("Lost the lease: another `serve` has taken over")
    os._exit(LOST)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except OrchestratorError as error:
        sys.stderr.write(f"orchestrator: {error}\n")
        sys.exit(1)
