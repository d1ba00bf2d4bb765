"""`python -m orchestrator.operate.web WORKSPACE`: what `serve` starts; the door comes on standard input, as JSON.

Neither the command line nor the environment holds the token: other users read the one, and the code servers, and with
them the trainings, would inherit the other.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from orchestrator import log_format
from orchestrator.errors import OrchestratorError
from orchestrator.operate.home import dagster_home
from orchestrator.operate.signals import unwind_on_signals
from orchestrator.operate.web.attempts import Attempts
from orchestrator.operate.web.audit import AuditLog
from orchestrator.operate.web.door import Door
from orchestrator.operate.web.entrance import Entrance
from orchestrator.operate.web.flower import FlowerProxy
from orchestrator.operate.web.gate import Gate
from orchestrator.operate.web.health import HealthPage
from orchestrator.operate.web.login import Login
from orchestrator.operate.web.metrics import MetricsPage
from orchestrator.operate.web.sessions import Sessions
from orchestrator.operate.web.tokens import MachineTokens
from orchestrator.operate.web.users import Users
from orchestrator.operate.web.webserver import dagster_app
from orchestrator.settings.groups import InstallationSettings, LauncherSettings
from orchestrator.settings.source import SettingsSource


def main(workspace: str) -> int:
    """Serve until a signal; return the exit status."""
    unwind_on_signals()
    as_json = SettingsSource().read(InstallationSettings).log_format == "json"
    _log_to_standard_error(as_json=as_json)
    door = Door.from_json(sys.stdin.read())
    home = dagster_home()
    audit = AuditLog(home)
    login = Login(door, MachineTokens(home), Users(Path(door.users_file)), Sessions(home))
    oidc = None
    if door.oidc:
        from orchestrator.operate.web.oidc import OidcClient  # only here, because few need authlib

        oidc = OidcClient(door.oidc)
    entrance = Entrance(door=door, login=login, attempts=Attempts(), audit=audit, oidc=oidc)
    flower = SettingsSource().read(LauncherSettings).flower
    routes = FlowerProxy(flower.get_secret_value(), audit=audit).routes() if flower else ()
    with dagster_app(workspace, code_server_log_level="warning", audit=audit, routes=routes) as dagster:
        health = HealthPage(dagster.view)
        gate = Gate(
            dagster.app, door=door, entrance=entrance, audit=audit, health=health, metrics=MetricsPage.of(dagster.view)
        )
        if as_json:
            log_format.use_json()  # Dagster has given its loggers handlers since
        uvicorn.run(
            gate,
            host=door.host,
            port=door.port,
            log_level="warning",
            workers=1,  # whatever WEB_CONCURRENCY says: more of them need another way to hand over the application
            log_config=None if as_json else LOGGING_CONFIG,
            access_log=False,  # it would hold the token of the first request
            proxy_headers=False,  # by default uvicorn believes what any program on this machine says of TLS
            server_header=False,
            timeout_graceful_shutdown=5,  # less than `serve` waits before it kills
            ssl_certfile=door.certificate,
            ssl_keyfile=door.key,
        )
    return 0


def _log_to_standard_error(*, as_json: bool) -> None:
    """Print what our own modules log, the audit log's lines too; what others log stays as it is, but for JSON."""
    if as_json:
        log_format.use_json()
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ours = logging.getLogger("orchestrator")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except OrchestratorError as error:
        sys.stderr.write(f"orchestrator: {error}\n")
        sys.exit(1)
