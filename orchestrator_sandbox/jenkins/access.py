"""Who may ask the sandbox's Jenkins for what: API tokens, passwords with crumbs, and the refusals' pages.

See https://www.jenkins.io/doc/book/system-administration/authenticating-scripted-clients/ and
https://www.jenkins.io/doc/book/security/csrf-protection/
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from urllib.parse import quote

from flask import Response, request

VERSION = "2.528.1"
SESSION_COOKIE = "JSESSIONID.sandbox"
OPEN_TO_ALL = ("/login", "/git/notifyCommit")


@dataclass
class Access:
    """The one user there is.

    Attributes:
        user: the user's name.
        token: the API token; it may be changed at any time, which revokes the old one.
        password: the password; a request with it instead of the token needs a crumb to change something.
        anonymous_read: everybody may look.
    """

    user: str
    token: str
    password: str
    anonymous_read: bool = False
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def refusal(self) -> Response | None:
        """The answer to a request that is not allowed; None to one that is."""
        given = request.authorization
        by_token = self._matches(self.token)
        if given and not by_token and not self._matches(self.password):
            return error_page(
                401, "Unauthorized", {"WWW-Authenticate": 'Basic realm="Jenkins"', **as_user("anonymous")}
            )
        if request.method == "POST" and not by_token and not self._crumb_matches():
            return error_page(403, "No valid crumb was included in the request")
        may = given or request.path in OPEN_TO_ALL or (self.anonymous_read and request.method == "GET")
        return None if may else _login_page()

    def _matches(self, secret: str) -> bool:
        given = request.authorization
        if given is None or given.type != "basic":
            return False
        expected = f"{self.user}:{secret}".encode()
        return hmac.compare_digest(f"{given.username}:{given.password}".encode(), expected)

    def crumb(self, session: str) -> str:
        """The crumb of a session."""
        return hmac.new(self.key, session.encode(), hashlib.sha256).hexdigest()

    def _crumb_matches(self) -> bool:
        session = request.cookies.get(SESSION_COOKIE)
        given = request.headers.get("Jenkins-Crumb") or request.form.get("Jenkins-Crumb", "")
        return session is not None and hmac.compare_digest(given.encode(), self.crumb(session).encode())


def as_user(user: str) -> dict[str, str]:
    """Headers that Jenkins explains a refusal with."""
    return {"X-You-Are-Authenticated-As": user}


def error_page(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error as Jetty, the web server inside Jenkins, shows it."""
    page = (
        f"<html>\n<head>\n<title>Error {status} {message}</title>\n</head>\n"
        f"<body><h2>HTTP ERROR {status} {message}</h2>\n<table>\n<tr><th>STATUS:</th><td>{status}</td></tr>\n"
        f"<tr><th>MESSAGE:</th><td>{message}</td></tr>\n</table>\n</body>\n</html>\n"
    )
    return Response(page, status, headers or {}, content_type="text/html;charset=iso-8859-1")


def _login_page() -> Response:
    target = f"/login?from={quote(request.full_path.rstrip('?'), safe='')}"
    page = (
        f"<html><head><meta http-equiv='refresh' content='1;url={target}'/>"
        f"<script id='redirect' data-redirect-url='{target}' src='/static/sandbox/scripts/redirect.js'></script>"
        "</head><body style='background-color:white; color:white;'>\nAuthentication required\n<!--\n-->\n\n"
        "</body></html>"
    )
    headers = as_user("anonymous") | {"X-Required-Permission": "hudson.model.Hudson.Read"}
    return Response(page, 403, headers, content_type="text/html;charset=utf-8")
