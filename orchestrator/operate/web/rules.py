"""The guard's rules: which requests are refused, whoever sends them. Pure.

Dagster's webserver executes GraphQL mutations sent by GET and by POST of any content type, for any Host and Origin, so
that every page which the operator opens could launch trainings; and a browser sends its cookies with every request.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.operate.web.door import Door
from orchestrator.operate.web.incoming import Incoming
from orchestrator.settings.hosts import HostPort, Origin, is_ip_address, is_loopback

LIVE = "/health/live"
READY = "/health/ready"
PROBES = (LIVE, READY)
"""What load balancers ask for, by whatever address they have of us; it is public."""

METRICS = "/metrics"
GRAPHQL = "/graphql"
REPORTS = "/report_asset"

METHODS = ("GET", "HEAD", "POST", "OPTIONS")
READING = ("GET", "HEAD")
SINGLE = ("origin", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest", "authorization", "content-type")
"""Headers of which a second one could be read by somebody else than the first one."""


@dataclass(frozen=True)
class Refusal:
    """The answer to a request that is not let through."""

    status: int
    sentence: str


@dataclass(frozen=True)
class Rules:
    """What is refused at this door."""

    door: Door

    def refusal(self, request: Incoming) -> Refusal | None:
        """Why a request is refused, whoever sends it; None: it is not."""
        return (
            self._of_host(request)
            or _of_spelling(request)
            or self._of_origin(request)
            or self._of_other_site(request)
            or _of_graphql(request)
        )

    def _of_host(self, request: Incoming) -> Refusal | None:
        host = request.host
        if host is None:
            return Refusal(400, "Refused: there must be one Host header, with a name and perhaps a port.")
        if self._is_ours(host.name, request) or (request.path in PROBES and is_ip_address(host.name)):
            return None
        return Refusal(
            421,
            "Refused: this is not reached under the name that the request gives. If the name is yours, "
            "put it into UI_HOSTS and restart; else a web page may have tried to get here (DNS rebinding).",
        )

    def _is_ours(self, name: str, request: Incoming) -> bool:
        local = HostPort.parse(f"[{request.local_address}]") or HostPort.parse(request.local_address)
        ours = {self.door.host.lower(), *self.door.named_hosts, local.name if local else ""}
        return is_loopback(name) or name in ours

    def _of_origin(self, request: Incoming) -> Refusal | None:
        text = request.value("origin")
        if text is not None:
            own = Origin.parse(text)
            return None if own and own in self._own_origins(request) else _foreign()
        if request.method in READING and not request.is_websocket:
            return None
        sent_by_browser = any(name.startswith("sec-fetch-") for name in request.headers)
        if sent_by_browser and request.value("sec-fetch-site") not in ("same-origin", "none"):
            return _foreign()
        return None

    def _own_origins(self, request: Incoming) -> set[Origin]:
        """Our own origin, as the request was made.

        What stands before a name of UI_HOSTS may end TLS there, which we cannot see: where the name comes without a
        port, and we do not listen on port 80 ourselves, `https` is as much our own as `http`.
        """
        host = request.host
        if host is None:
            return set()
        schemes = {request.scheme}
        if host.name in self.door.named_hosts and host.port is None and self.door.port != 80:
            schemes.add("https")
        return {Origin.of(scheme, host) for scheme in schemes}

    def _of_other_site(self, request: Incoming) -> Refusal | None:
        """Another site may link to us, and show us in a frame if it is allowed to; it may not load parts of us."""
        if request.value("sec-fetch-site") in (None, "same-origin", "none"):
            return None
        targets = ("document", "iframe", "frame") if self.door.frame_ancestors else ("document",)
        navigates = request.value("sec-fetch-mode") == "navigate" and request.value("sec-fetch-dest") in targets
        if request.method in READING and navigates and not request.is_websocket:
            return None
        return _foreign()


def is_report(request: Incoming) -> bool:
    """Whether it reports an asset's materialisation, check or observation to Dagster."""
    # As Dagster routes it, where `..` is part of an asset's key, and as a more lenient router would.
    return request.path.startswith(REPORTS) or request.normal_path.startswith(REPORTS)


def _foreign() -> Refusal:
    return Refusal(403, "Refused: another site sent this request. Only the UI's own pages may do so.")


def _of_spelling(request: Incoming) -> Refusal | None:
    if any(len(request.values(name)) > 1 for name in SINGLE):
        return Refusal(400, "Refused: a header that may come once came twice.")
    if not request.path.startswith("/") or any(ord(sign) < 32 or ord(sign) == 127 for sign in request.path):
        return Refusal(400, "Refused: the path holds control characters.")
    if request.method not in METHODS:
        return Refusal(405, f"Refused: the method is none of {', '.join(METHODS)}.")
    return None


def _of_graphql(request: Incoming) -> Refusal | None:
    path = request.normal_path
    if request.is_websocket or not (path == GRAPHQL or path.startswith(f"{GRAPHQL}/")):
        return None
    if request.method in READING:
        return Refusal(405, "Refused: GraphQL is answered by POST only.") if request.query else None
    if request.method != "POST":
        return None
    if any("query" in name for name in request.parameter_names()):
        return Refusal(400, "Refused: the query belongs into the body, not into the address.")
    if request.media_type != "application/json":
        return Refusal(415, "Refused: GraphQL takes the content type application/json only.")
    return None
