"""Hides secrets in a text that comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

MASK = "****"

SHORTEST = 4
"""Shorter secrets are not hidden: they would make ordinary words unreadable, and tell their own value."""


class Masker:
    """Replaces secrets by `****`, also as they stand in a URL, and also when split over pieces.

    What comes out, put together, equals masking the whole text at once. Only the end of a piece that
    may be the beginning of a secret is held back.

    Args:
        secrets: the texts to hide; those under `SHORTEST` characters are ignored.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {
            form
            for secret in secrets
            if len(secret) >= SHORTEST
            for form in (secret, _quoted(secret, ""), _quoted(secret, "/"), quote_plus(secret, errors="replace"))
        }
        self._forms = sorted(forms, key=len, reverse=True)  # an alternation takes the first that fits
        self._pattern = re.compile("|".join(map(re.escape, self._forms)) or r"(?!)")
        self._held = ""

    def feed(self, chunk: str) -> str:
        """The next piece: what can be said of it now."""
        text, ready, position = self._held + chunk, [], 0
        held_from = self._held_from(text, 0)
        while (match := self._pattern.search(text, position)) and match.start() < held_from:
            ready += [text[position : match.start()], MASK]
            position = match.end()
            if position > held_from:
                held_from = self._held_from(text, position)
        self._held = text[held_from:]
        return "".join((*ready, text[position:held_from]))

    def flush(self) -> str:
        """The rest; nothing more comes, so nothing is held back."""
        rest, self._held = self._held, ""
        return self._pattern.sub(MASK, rest)

    def mask(self, text: str) -> str:
        """A whole text at once, apart from what is fed."""
        return self._pattern.sub(MASK, text)

    def _held_from(self, text: str, start: int) -> int:
        """Where the longest end of the text begins that more text could turn into a secret."""
        longest = len(self._forms[0]) if self._forms else 1
        for position in range(max(start, len(text) - longest + 1), len(text)):
            rest = text[position:]
            if any(len(form) > len(rest) and form.startswith(rest) for form in self._forms):
                return position
        return len(text)


def _quoted(secret: str, safe: str) -> str:
    return quote(secret, safe=safe, errors="replace")
