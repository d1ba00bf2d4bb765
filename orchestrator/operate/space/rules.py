"""What must be set before the orchestrator can work in a Hugging Face Space.

Its rules, of which each has cost somebody a day: https://huggingface.co/docs/hub/spaces-overview#networking (what gets
out) and https://huggingface.co/docs/hub/spaces-storage (its disk is lost at each restart).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from orchestrator.errors import SettingsError
from orchestrator.settings.variables import lookup

SPACE_ID = "SPACE_ID"
"""Set by Hugging Face, in each of its Spaces."""

SPACE_PORTS = "SPACE_PORTS"

_PORTS = (80, 443, 8080)
_DATABASE = "DAGSTER_POSTGRES_URL"
_SERVERS = {"JENKINS_URL": "", "MLFLOW_TRACKING_URI": "", _DATABASE: "5432"}
"""What is connected to, and the port that an address without one means; empty: that of its scheme."""


def require_space_rules(lookup: Callable[[str], str | None] = lookup) -> None:
    """In a Space, check that what is set can work there; elsewhere, nothing is asked for.

    Args:
        lookup: reads one variable.

    Raises:
        SettingsError: names all that cannot.
    """
    if not lookup(SPACE_ID):
        return
    ports = _ports(lookup(SPACE_PORTS))
    out = ", ".join(map(str, ports))
    faults = []
    if not lookup(_DATABASE):
        faults.append(
            f"{_DATABASE} is not set: the disk of a Space is lost at each restart, and with it which builds were "
            f"trained; set it to a PostgreSQL that is reached on a port of {out}"
        )
    port = lookup("SSH_PORT") or "22"
    if port.strip() not in map(str, ports):
        faults.append(f"SSH_PORT is {port}, which does not get out: set it to 443, and let it into SECURITY_GROUP_ID")
    for name, default in _SERVERS.items():
        text = lookup(name)
        if text and (blocked := _blocked(text, default, ports)):
            faults.append(f"{name} leads to port {blocked}, which does not get out")
    if faults:
        raise SettingsError(
            f"a Hugging Face Space lets out what goes to ports {out} only: {'; '.join(faults)}. Set them under "
            f"Settings > Variables and secrets; if Hugging Face lets more out today, say so by {SPACE_PORTS}"
        )


def _ports(text: str | None) -> Sequence[int]:
    words = (text or "").replace(",", " ").split()
    if not all(word.isdecimal() for word in words):
        raise SettingsError(f"{SPACE_PORTS}={text!r} is wrong: write ports with commas between them, such as 80,443")
    return tuple(map(int, words)) or _PORTS


def _blocked(address: str, default: str, ports: Sequence[int]) -> str:
    """The port that an address leads to, where it does not get out; empty: it does, or it is somebody else's fault."""
    found = re.search(r"://(?:[^/?#]*@)?(?:\[[^\]]*\]|[^:/?#@]*)(?::(\d+))?(?:[/?#]|$)", address.strip())
    if found is None:
        return ""
    port = found[1] or default or {"http": "80", "https": "443"}.get(urlsplit(address.strip()).scheme, "")
    return "" if not port or int(port) in ports else port
