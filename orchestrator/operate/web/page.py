"""The page that asks for the token; it loads nothing from anywhere, so that it needs no public path."""

from __future__ import annotations

import base64
import hashlib
import html

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
input { flex: 1; min-width: 0; padding: .6rem .75rem; border: 1px solid #8886; border-radius: 8px; font: inherit;
  background: transparent; color: inherit; }
button { padding: .6rem 1.1rem; border: 0; border-radius: 8px; background: #4f43dd; color: #fff; font: inherit;
  font-weight: 600; cursor: pointer; }
input:focus-visible, button:focus-visible { outline: 3px solid #8b80ff; outline-offset: 1px; }
@media (prefers-color-scheme: dark) {
  body { background: #0e1117; color: #e6e9ee; } main { background: #171b23; } p { color: #9aa4b1; }
  p.wrong { color: #ff8a80; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in to orchestrator</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
<h1>Log in to orchestrator</h1>
{wrong}<p>It asks for a token: what follows <code>?token=</code> in the address that <code>orchestrator serve</code>
or <code>orchestrator demo</code> printed when it started, or the value of <code>UI_TOKEN</code> where that is set.</p>
<form method="post" action="/login">
<input type="hidden" name="next" value="{target}">
<input type="text" name="username" value="ui" autocomplete="username" hidden>
<input type="password" name="token" placeholder="Token" aria-label="Token" autocomplete="current-password"
 required autofocus>
<button>Open</button>
</form>
</main>
</body>
</html>
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
SECURITY_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; form-action 'self'; base-uri 'none'"


def token_page(*, target: str, is_wrong: bool) -> str:
    """The page.

    Args:
        target: the local address that was asked for, to go to afterwards.
        is_wrong: a wrong one was tried.
    """
    return _PAGE.format(
        style=_STYLE,
        wrong='<p class="wrong" role="alert">That is not the token.</p>\n' if is_wrong else "",
        target=html.escape(target, quote=True),
    )
