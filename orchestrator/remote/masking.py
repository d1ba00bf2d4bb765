"""Hides secrets in a text that comes in pieces."""

from __future__ import annotations

import base64
import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote, quote_plus

from orchestrator.printable import printable

MASK = "****"

SHORTEST = 4
"""Shorter secrets are not hidden: they would make ordinary words unreadable, and tell their own value."""

_SHORTEST_ENCODED = 8
"""Shorter parts of an encoded secret may stand in any word."""

_HEAD = 8
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_SAFE_IN_ADDRESSES = ("", "/", "!'()*~", ";,/?:@&=+$!*'()#")
"""Which characters the common ways to quote leave alone: Python's two, and those of browsers."""

_WRAPPED = (64, 76)
"""After so many characters `openssl base64` and `base64` begin a new line."""


class Masker:
    """Replaces secrets by `****`, also in their encoded forms, in colours, and when split over pieces.

    What comes out, put together, equals masking the whole text at once. Only the end of a piece that
    may be the beginning of a secret is held back. Whether letters are capital makes no difference.

    Args:
        secrets: the texts to hide; those under `SHORTEST` characters are ignored.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form.translate(_SMALL) for secret in set(secrets) for form in _forms(secret) if len(form) >= SHORTEST}
        by_length = sorted(forms, key=lambda form: (-len(form), form))
        self._forms: dict[str, list[str]] = {}
        for form in by_length:
            self._forms.setdefault(form[:SHORTEST], []).append(form)
        heads = sorted({form[:_HEAD] for form in forms})
        self._heads = re.compile(_alternatives(heads) if heads else r"(?!)")
        self._beginnings = {head[:length] for head in heads for length in range(1, len(head))}
        self._held = ""
        self.longest = len(by_length[0]) if by_length else 0

    def feed(self, chunk: str) -> str:
        """The next piece: what can be said of it now."""
        masked, self._held = self._masked(self._held + chunk, final=False)
        return masked

    def flush(self) -> str:
        """The rest; nothing more comes, so nothing is held back."""
        rest, self._held = self._held, ""
        return self._masked(rest, final=True)[0]

    def mask(self, text: str) -> str:
        """A whole text at once, apart from what is fed."""
        return self._masked(text, final=True)[0]

    def _masked(self, text: str, *, final: bool) -> tuple[str, str]:
        """The text with masks, and the end of it that more text could turn into a secret."""
        visible, colours = _without_colours(text)
        parts, position = [], 0
        for start, end in self._found(visible, final=final):
            parts.append(_coloured(visible, colours, position, start))
            colours = [(place, colour) for place, colour in colours if place > start]
            if end is None:
                return "".join(parts), _coloured(visible, colours, start, len(visible))
            parts += [MASK, *(colour for place, colour in colours if place < end)]
            colours = [(place, colour) for place, colour in colours if place >= end]
            position = end
        parts.append(_coloured(visible, colours, position, len(visible)))
        return "".join(parts), ""

    def _found(self, text: str, *, final: bool) -> Iterator[tuple[int, int | None]]:
        """Where secrets begin and end, in order; without an end: where the text may end within one."""
        small, position = text.translate(_SMALL), 0
        while match := self._heads.search(small, position):
            start = match.start()
            forms = self._forms[small[start : start + SHORTEST]]
            if not final and self._may_begin(small, start, forms):
                yield start, None
                return
            found = next((form for form in forms if small.startswith(form, start)), None)
            position = start + len(found) if found else start + 1
            if found:
                yield start, position
        if not final:
            for start in range(max(position, len(small) - _HEAD + 1), len(small)):
                if small[start:] in self._beginnings:
                    yield start, None
                    return

    @staticmethod
    def _may_begin(text: str, start: int, forms: Sequence[str]) -> bool:
        """Whether a form begins here that is longer than what has come."""
        rest = len(text) - start
        return any(len(form) > rest and form.startswith(text[start:]) for form in forms)


_SMALL = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def _forms(secret: str) -> Iterator[str]:
    """The secret as programs print it: as it is, escaped, quoted, encoded."""
    for text in {secret, secret.strip(), printable(secret)}:
        if len(text) < SHORTEST:
            continue
        yield text
        yield from _escaped(text)
        yield from _quoted(text)
        yield from _encoded(text.encode(errors="surrogateescape"))


def _escaped(text: str) -> Iterator[str]:
    for escaped in {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}:
        yield escaped
        yield escaped.replace("/", "\\/")
        yield json.dumps(escaped)[1:-1]
    yield repr(text)[1:-1]
    yield repr(f"'\"{text}")[4:-1]
    yield ascii(text)[1:-1]
    yield repr(text.encode(errors="surrogateescape"))[2:-1]
    yield text.replace("'", "'\"'\"'")
    yield text.replace("'", "'\\''")
    yield html.escape(text)
    yield html.escape(text, quote=False)


def _quoted(text: str) -> Iterator[str]:
    for safe in _SAFE_IN_ADDRESSES:
        yield quote(text, safe=safe, errors="replace")
    yield quote_plus(text, errors="replace")


def _encoded(data: bytes) -> Iterator[str]:
    """In base64, wherever it begins in what was encoded (as in `Basic` of user:password), and in hexadecimal digits."""
    yield data.hex()
    for altchars in (b"+/", b"-_"):
        whole = base64.b64encode(data, altchars).decode()
        yield whole
        for width in _WRAPPED:
            lines = [whole[first : first + width] for first in range(0, len(whole), width)]
            yield from (line for line in lines[:-1])
            if len(lines) > 1 and len(lines[-1]) >= _SHORTEST_ENCODED:
                yield lines[-1]
        for before in range(3):
            encoded = base64.b64encode(b"\0" * before + data, altchars).decode()
            # Characters at both ends hold bits of what stands beside it.
            core = encoded[(0, 2, 3)[before] :]
            core = core if (before + len(data)) % 3 == 0 else core.rstrip("=")[:-1]
            if len(core) >= _SHORTEST_ENCODED:
                yield core


def _alternatives(words: Sequence[str]) -> str:
    """A pattern for one of the words, sorted ones, that tries each character once."""
    if "" in words:
        return ""
    parts = []
    for first, group in itertools.groupby(words, key=lambda word: word[0]):
        parts.append(re.escape(first) + _alternatives([word[1:] for word in group]))
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _without_colours(text: str) -> tuple[str, list[tuple[int, str]]]:
    """The text without colours, and those, with their places in it."""
    if "\x1b" not in text:
        return text, []
    visible, colours, position, length = [], [], 0, 0
    for match in _COLOUR.finditer(text):
        visible.append(text[position : match.start()])
        length += match.start() - position
        colours.append((length, match[0]))
        position = match.end()
    return "".join((*visible, text[position:])), colours


def _coloured(visible: str, colours: Sequence[tuple[int, str]], start: int, end: int) -> str:
    """A part of the text, with the colours that stand in it and at its end."""
    if not colours:
        return visible[start:end]
    parts, position = [], start
    for place, colour in colours:
        if place > end:
            break
        parts += [visible[position:place], colour]
        position = place
    return "".join((*parts, visible[position:end]))
