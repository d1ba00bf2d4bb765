"""Which parts of a variable's value must not be shown: by its name, by its form, and by how random it looks.

What is harmless stays readable: a log whose every `true` and `/home/ubuntu` reads `****` explains nothing.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from urllib.parse import unquote

_SECRET_NAME = re.compile(
    r"PASSW(OR)?D|PASSPHRASE|SECRET|TOKEN(?!I[ZS])|CREDENTIAL|COOKIE|SIGNATURE|WEBHOOK|CONNECTION_STRING"
    r"|(ACCESS|API|PRIVATE|SIGNING|ENCRYPTION|AUTH|ACCOUNT|LICEN[CS]E)_?KEY"
    r"|KEYS?\d*$|(^|_)(PASS|PWD|PIN|PAT|PSK|DSN|JWT|SAS|SALT|AUTH|AUTHORIZATION)\d*($|_)"
)
"""Names of secrets; not of what merely sounds like one: `KEY_COLUMN`, `TOKENIZERS_PARALLELISM`."""

_COUNTED = re.compile(r"TOKENS|KEYS|LENGTH|COUNT|SIZE|LIMIT|SECONDS|MINUTES|^(MAX|MIN|N|NUM)_")
"""A number of such a name counts: `MAX_NEW_TOKENS=128000`."""

_WORD = re.compile(r"(?i)true|false|yes|no|on|off|none|null|auto|default|enabled|disabled")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+){1,2}-\d[a-z]?")
_PATH = re.compile(r"(~[\w.-]*|\.{1,2})?(/[\w.@ -]*)+(:(~|\.{1,2})?(/[\w.@ -]*)+)*")
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?#@]*/?")

_LOGIN = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://([^/?#@:]*)(?::([^/?#]*))?@")
"""In an address; urlsplit() would refuse some of these, and a refusal masks nothing."""

_HEADER = re.compile(r"(?i)\b(?:basic|bearer|token)\s+([^\s,;\"']{6,})")
_NAMED = re.compile(
    r"(?i)(?:passw(?:or)?d|passphrase|\bpwd|secret|token|credential|signature|\bsig|\bauth|api_?-?key|(?:access|account|private)_?-?key)"
    r"\w*[\"']?\s*[=:]\s*[\"']?(?!(?:basic|bearer|token)\s)([^\s;&,\"'{}\[\]]{4,})"
)
"""`password=…` in the text of a connection, a query or a JSON object."""

_HOST = re.compile(r"(?i)(localhost|([\w-]+\.)+[a-z]{2,}|\d{1,3}(\.\d{1,3}){3})(:\d{1,5})?")
_PLAIN_KEYS = re.compile(
    r"(?i)(^|_)(type|kind|name|user|username|login|email|host|hostname|port|region|zone|project|project_id|database|db|"
    r"schema|scope|scopes|url|uri|endpoint|path|engine|driver|dialect|domain|environment|env|version)$"
)
"""Keys of a JSON object that say what a secret is for."""

_PRIVATE_KEY = "PRIVATE KEY-----"
_LONG = 16
_LINE = 8
"""Characters that a line of a secret has at least to be hidden by itself."""

_DEEPEST = 20


def secret_parts(name: str, value: str, *, declared: bool = False) -> list[str]:
    """The parts of a variable's value that must not be shown; the whole value, when in doubt.

    Args:
        name: of the variable.
        value: of the variable.
        declared: somebody says that it is a secret: only a mere word, such as `true`, is none.
    """
    text = value.strip()
    parts = [*login_parts(value), *(found[1] for found in _HEADER.finditer(text)), *_named(text)]
    secret = (declared and not _is_word(text)) or _is_secret(name.upper(), text)
    for key, leaf in _leaves(text):
        if (secret and not _is_harmless(key, leaf)) or _is_secret(key.upper(), leaf.strip()):
            parts += [leaf, leaf.strip(), *_lines(leaf)]
        parts += login_parts(leaf)
    if secret:
        parts += [value, text, *_lines(text)]
    return parts


def _lines(text: str) -> Iterator[str]:
    r"""The lines of a text, which a log shows one by one; also where `\n` stands for their ends."""
    lines = [line.strip() for line in text.replace("\\r", "").replace("\\n", "\n").splitlines()]
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _LINE and not _is_harmless("", line))


def _is_harmless(key: str, text: str) -> bool:
    """Whether a part of a secret is of a kind that stands everywhere."""
    text = text.strip()
    if _is_word(text) or _NUMBER.fullmatch(text) or _HOST.fullmatch(text):
        return True
    if _PATH.fullmatch(text) or _ADDRESS.fullmatch(text):
        return not looks_random(text)
    return bool(_PLAIN_KEYS.search(key)) and not looks_random(text)


def _leaves(text: str) -> Iterator[tuple[str, str]]:
    """The texts in a JSON document, and the key under which each stands."""
    if not text.startswith(("{", "[")):
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    remaining = [("", document, 0)]
    while remaining:
        key, node, depth = remaining.pop()
        if isinstance(node, str):
            yield key, node
        elif isinstance(node, int | float) and not isinstance(node, bool):
            yield key, json.dumps(node)
        elif depth < _DEEPEST and isinstance(node, dict):
            remaining += [(str(name), value, depth + 1) for name, value in node.items()]
        elif depth < _DEEPEST and isinstance(node, list):
            remaining += [(key, value, depth + 1) for value in node]


def login_parts(address: str) -> list[str]:
    """The passwords of the logins in the addresses of a text, and user names that are tokens."""
    parts = []
    for user, password in _LOGIN.findall(address):
        for part in (user if looks_random(user) else "", password):
            parts += [part, unquote(part)]  # MLflow prints the one, other programs the other
    return [part for part in parts if part]


def looks_random(text: str) -> bool:
    """Whether a part of a text may be a key that a machine has made: long, and of changing kinds of characters."""
    return any(_is_random(piece) for piece in re.split(r"[^A-Za-z0-9+=]+", text))


def _is_random(piece: str) -> bool:
    if len(piece) < _LONG or not re.search(r"\d", piece) or not re.search(r"[A-Za-z]", piece):
        return False
    kinds = ["0" if char.isdigit() else "a" if char.islower() else "A" for char in piece]
    changes = sum(left != right for left, right in itertools.pairwise(kinds))
    return changes * 4 >= len(piece) and (len(set(kinds)) == 3 or len(piece) >= _LONG + 8)


def _named(text: str) -> list[str]:
    return [found[1] for found in _NAMED.finditer(text) if not _is_word(found[1])]


def _is_secret(name: str, text: str) -> bool:
    if _PRIVATE_KEY in text or (_HEADER.search(text) and "authorization" in text.lower()):
        return True
    if _is_word(text):
        return False
    named = bool(_SECRET_NAME.search(name))
    if _NUMBER.fullmatch(text):
        return named and not _COUNTED.search(name) and len(text) >= 6  # a code that somebody types
    if _PATH.fullmatch(text) or _ADDRESS.fullmatch(text):
        return looks_random(text)
    if _LOGIN.match(text):  # a login makes no secret of the host behind it
        named = False
    known = [*login_parts(text), *_named(text)]
    rest = text
    for part in known:
        rest = rest.replace(part, " ")
    return named or looks_random(rest)


def _is_word(text: str) -> bool:
    return bool(_WORD.fullmatch(text) or _REGION.fullmatch(text))
