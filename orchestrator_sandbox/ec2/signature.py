"""Who may give the sandbox's EC2 API orders: whoever signs them with its credentials, as AWS has it.

botocore, which signs for our clients, computes what the signature must be.
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-signing-elements.html
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from botocore.auth import SIGV4_TIMESTAMP, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key_id>\w+)/(?P<day>\d{8})/(?P<region>[a-z0-9-]+)/(?P<service>[a-z0-9-]+)"
    r"/aws4_request, *SignedHeaders=(?P<headers>[a-z0-9-]+(?:;[a-z0-9-]+)*), *Signature=(?P<signature>[0-9a-f]{64})"
)
MUST_BE_SIGNED = {"host", "x-amz-date"}
VALID = timedelta(minutes=15)
"""How far the clocks may be apart: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html"""


@dataclass(frozen=True)
class SandboxCredentials:
    """An access key that only this sandbox knows.

    Attributes:
        key_id: the access key ID.
        secret: the secret access key.
        signed_hosts: addresses of proxies that lead here, beside the address that was asked for.
    """

    key_id: str = field(default_factory=lambda: f"SANDBOX{secrets.token_hex(8).upper()}")
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(30), repr=False)
    signed_hosts: set[str] = field(default_factory=set)

    def knows(self, environ: WSGIEnvironment) -> bool:
        """Whether a request names this key, and is young enough; its body need not be read for that."""
        claim = AUTHORIZATION.fullmatch(environ.get("HTTP_AUTHORIZATION", ""))
        if claim is None or not hmac.compare_digest(claim["key_id"].encode(), self.key_id.encode()):
            return False
        try:
            signed_at = datetime.strptime(environ.get("HTTP_X_AMZ_DATE", ""), SIGV4_TIMESTAMP).replace(tzinfo=UTC)
        except ValueError:
            return False
        return abs(datetime.now(UTC) - signed_at) < VALID and claim["day"] == f"{signed_at:%Y%m%d}"

    def signed(self, environ: WSGIEnvironment, body: bytes) -> bool:
        """Whether a request that names this key is signed with its secret."""
        claim = AUTHORIZATION.fullmatch(environ.get("HTTP_AUTHORIZATION", ""))
        if claim is None or not set(claim["headers"].split(";")) >= MUST_BE_SIGNED:
            return False
        hosts = (environ["HTTP_HOST"], *sorted(self.signed_hosts))
        return any(
            hmac.compare_digest(self._signature(environ, body, claim, host), claim["signature"]) for host in hosts
        )

    def _signature(self, environ: WSGIEnvironment, body: bytes, claim: re.Match[str], host: str) -> str:
        names = claim["headers"].split(";")
        headers = {name: host if name == "host" else _header(environ, name) for name in names}
        query = environ.get("QUERY_STRING", "")
        request = AWSRequest(
            environ["REQUEST_METHOD"],
            f"http://{host}{environ['PATH_INFO']}{'?' if query else ''}{query}",
            headers=headers,
            data=body,
        )
        request.context["timestamp"] = environ["HTTP_X_AMZ_DATE"]
        auth = _Sha256OfTheBody(Credentials(self.key_id, self.secret), claim["service"], claim["region"])
        return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)


class _Sha256OfTheBody(SigV4Auth):
    """Believes no header that says what the body's hash is."""

    def canonical_request(self, request: AWSRequest) -> str:
        lines = super().canonical_request(request).split("\n")
        return "\n".join([*lines[:-1], self.payload(request)])


def _header(environ: WSGIEnvironment, name: str) -> str:
    key = name.upper().replace("-", "_")
    return str(environ.get(key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}", ""))
