"""The pages of the login and the log-out; they load nothing from anywhere, so that they need no public path."""

from __future__ import annotations

import base64
import hashlib
import html
from dataclasses import dataclass
from urllib.parse import urlencode

from orchestrator.operate.web.caller import Caller

LOGIN = "/login"
LOGOUT = "/logout"

_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: #f5f6f8; color: #1b1f24;
  font: 16px/1.5 system-ui, sans-serif; }
main { box-sizing: border-box; width: min(30rem, 92vw); padding: 2.25rem; background: #fff; border-radius: 14px;
  box-shadow: 0 1px 3px #0002, 0 12px 32px #0001; }
h1 { margin: 0 0 .25rem; font-size: 1.3rem; }
p { margin: .5rem 0 0; color: #57606a; }
p.wrong { color: #b42318; font-weight: 600; }
code { padding: .1em .35em; border-radius: 5px; background: #8882; font-size: .9em; overflow-wrap: anywhere; }
form { display: flex; gap: .5rem; margin-top: 1.5rem; }
form.person { flex-direction: column; gap: .9rem; }
label { display: flex; flex-direction: column; gap: .25rem; font-size: .9rem; font-weight: 600; }
input { flex: 1; min-width: 0; padding: .6rem .75rem; border: 1px solid #8886; border-radius: 8px; font: inherit;
  background: transparent; color: inherit; }
button, a.button { padding: .6rem 1.1rem; border: 0; border-radius: 8px; background: #4f43dd; color: #fff;
  font: inherit; font-weight: 600; cursor: pointer; text-align: center; text-decoration: none; }
a.button { display: block; margin-top: 1.5rem; }
details { margin-top: 1.5rem; border-top: 1px solid #8884; padding-top: 1rem; }
summary { cursor: pointer; color: #57606a; }
input:focus-visible, button:focus-visible, a:focus-visible, summary:focus-visible {
  outline: 3px solid #8b80ff; outline-offset: 1px; }
@media (prefers-color-scheme: dark) {
  body { background: #0e1117; color: #e6e9ee; } main { background: #171b23; } p, summary { color: #9aa4b1; }
  p.wrong { color: #ff8a80; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{content}</main>
</body>
</html>
"""

_BY_NAME = """<form class="person" method="post" action="/login">
<input type="hidden" name="next" value="{target}">
<label>Name <input type="text" name="username" autocomplete="username" autocapitalize="none" spellcheck="false"
 required autofocus></label>
<label>Password <input type="password" name="password" autocomplete="current-password" required></label>
<button>Log in</button>
</form>
"""

_TO_OPEN = """<p>It asks for a token: what follows <code>?token=</code> in the address that
<code>orchestrator serve</code> or <code>orchestrator demo</code> printed when it started, or the
value of <code>UI_TOKEN</code> where that is set.</p>
<form method="post" action="/login">
<input type="hidden" name="next" value="{target}">
<input type="text" name="username" value="ui" autocomplete="username" hidden>
<input type="password" name="token" placeholder="Token" aria-label="Token" autocomplete="current-password"
 required{autofocus}>
<button>Open</button>
</form>
"""

_LOG_OUT = """<p>{who}</p>
<form class="person" method="post" action="/logout"><button>Log out</button></form>
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
SECURITY_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; form-action 'self'; base-uri 'none'"


USERS_FAULT = (
    "The file of the users cannot be read, so that nobody can log in by a password; the output of `orchestrator serve` "
    "says what is wrong with it."
)


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How one may log in here.

    Attributes:
        password: there are users.
        has_fault: the file of the users cannot be used, so that nobody knows whether there are.
        token: a token opens the UI.
        oidc: host name of the provider; None: there is none.
    """

    password: bool
    token: bool
    oidc: str | None
    has_fault: bool = False


def login_page(ways: Ways, *, target: str, complaint: str | None = None) -> str:
    """The page that asks for a login.

    Args:
        ways: what it offers.
        target: the local address that was asked for, to go to afterwards.
        complaint: what was wrong with the last attempt.
    """
    parts = [f'<p class="wrong" role="alert">{html.escape(complaint)}</p>\n'] if complaint else []
    if ways.has_fault:
        parts.append(f'<p class="wrong" role="alert">{html.escape(USERS_FAULT)}</p>\n')
    escaped = html.escape(target, quote=True)
    if ways.oidc:
        address = html.escape(f"/login/oidc?{urlencode({'next': target})}", quote=True)
        parts.append(f'<a class="button" href="{address}">Log in at {html.escape(ways.oidc)}</a>\n')
    if ways.password:
        parts.append(_BY_NAME.format(target=escaped))
    is_only_way = not (ways.oidc or ways.password or ways.has_fault)
    if ways.token or is_only_way:
        form = _TO_OPEN.format(target=escaped, autofocus=" autofocus" if is_only_way else "")
        parts.append(form if is_only_way else f"<details><summary>Log in with a token</summary>\n{form}</details>\n")
    return _PAGE.format(title="Log in to orchestrator", style=_STYLE, content="".join(parts))


def log_out_link(caller: Caller) -> str:
    """What Dagster's page shows in its corner to whoever has logged in: his name, and the way out."""
    name = html.escape(caller.name if len(caller.name) <= 40 else f"{caller.name[:39]}…")
    # Below the last entry of the navigation: elsewhere it would lie on buttons of Dagster's.
    style = (
        "position:fixed;left:16px;bottom:0;z-index:15;max-width:192px;padding:0 8px;border-radius:8px 8px 0 0;"
        "overflow:hidden;white-space:nowrap;text-overflow:ellipsis;font:11px/16px system-ui,sans-serif;"
        "background:#4f43dd;color:#fff;text-decoration:none"
    )
    return f'<a href="{LOGOUT}" id="log-out" style="{style}">Log out · {name} · {caller.role}</a>'


def logout_page(who: str, *, can_log_out: bool) -> str:
    """The page that ends a session.

    Args:
        who: who is logged in, and how.
        can_log_out: we know the session, and can end it.
    """
    content = _LOG_OUT.format(who=html.escape(who)) if can_log_out else f"<p>{html.escape(who)}</p>\n"
    return _PAGE.format(title="Log out of orchestrator", style=_STYLE, content=content)
