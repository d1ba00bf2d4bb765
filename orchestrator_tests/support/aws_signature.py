"""What AWS checks of a signed request, by botocore's own hands, and by AWS's reading of the query."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

from orchestrator_sandbox.ec2.signature import AUTHORIZATION, SandboxCredentials
from orchestrator_sandbox.proxy import Request


@dataclass(frozen=True)
class SignatureCheck:
    """Whether requests are signed as AWS wants it.

    Attributes:
        credentials: whose they have to be.
        service: what they have to be signed for.
        region: likewise.
        signed: headers that have to be signed, too.
    """

    credentials: SandboxCredentials
    service: str
    region: str
    signed: frozenset[str] = frozenset()

    def refuses(self, request: Request) -> bool:
        """Whether a request is refused."""
        headers = {name.lower(): text for name, text in request.headers.items()}
        path, _, query = request.path.partition("?")
        environ = {
            **{f"HTTP_{name.upper().replace('-', '_')}": text for name, text in headers.items()},
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": headers.get("content-type", ""),
            "PATH_INFO": path,
            "QUERY_STRING": _as_aws_reads(query),
        }
        claim = AUTHORIZATION.fullmatch(headers.get("authorization", ""))
        scope = (claim["service"], claim["region"]) if claim else None
        return (
            claim is None
            or scope != (self.service, self.region)
            or not self.signed <= set(claim["headers"].split(";"))
            or "connection" in claim["headers"].split(";")
            or not self.credentials.knows(environ)
            or not self.credentials.signed(environ, request.body)
        )


def _as_aws_reads(query: str) -> str:
    """Decoded and encoded again; a + is a plus."""
    pairs = [part.partition("=")[::2] for part in query.split("&") if part]
    return "&".join(
        sorted(f"{quote(unquote(name), safe='')}={quote(unquote(value), safe='')}" for name, value in pairs)
    )
