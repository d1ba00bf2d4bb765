"""Text of others as a terminal, a log file and a page may show it: printable characters, line ends, tabs, colours."""

from __future__ import annotations

import re
import unicodedata

LONGEST_STATE = 4096
"""Characters of a progress bar's state; a longer one is an ordinary line."""

EACH_STATE = 512
"""Of the many states of a progress bar the 1st, 2nd, 4th, 8th ... are kept, later each of so many, and the last."""

MOST_COLOURS = 8
"""Colour sequences in a row; whoever prints more of them wants to fill memory."""

RESET = "\x1b[0m"

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_ODD = re.compile(r"[^\x20-\x7e\n\t]")
_BEGINS = re.compile(r"[\x1b\x80-\x9f]")

_LONGEST_PARAMETERS = 256
_LONGEST_COLOUR = 64

_SEQUENCE = re.compile(
    rf"(?:\x1b\[|\x9b)(?P<parameters>[\x20-\x3f]{{0,{_LONGEST_PARAMETERS}}})(?P<final>[\x40-\x7e])?"
    r"|(?P<string>\x1b[PX\]^_]|[\x90\x98\x9d-\x9f])"
    r"|\x1b[\x20-\x2f]{0,16}(?P<end>[\x30-\x7e])?"
    r"|[\x80-\x9f]"
)
"""ECMA-48: control sequences, control strings (titles, clipboard, links, images), and the rest, in 7 and 8 bits.

https://ecma-international.org/publications-and-standards/standards/ecma-48/
"""

_STRING_END = re.compile(r"[\x07\x18\x1a\x9c]|(?=[\x1b\n])")
"""A string that nobody ends is over with its line: it must not hide what comes later."""

_PARAMETERS_END = re.compile(r"[\x40-\x7e]|(?=[^\x20-\x7e])")

_COLOURS = frozenset({*range(8), 9, *range(21, 28), *range(29, 50), 53, 55, 58, 59, *range(90, 98), *range(100, 108)})
"""What stays of SGR: colours, bold, underlined and the like. 8 conceals, and nothing that is printed may be hidden."""


def printable(text: str) -> str:
    """A whole text, without what would move a cursor, hide text, or speak to the terminal."""
    stream = PrintableStream()
    return stream.feed(text) + stream.flush()


def without_colours(text: str) -> str:
    """A printable text without its colours."""
    return _COLOUR.sub("", text)


class PrintableStream:
    r"""Makes a text that comes in pieces printable; how it is cut makes no difference to what comes out.

    What comes out holds printable characters, `\n`, `\t`, and complete colour sequences. All other control
    sequences, control characters and invisible characters (which turn the direction of writing, say) are left out.
    Of the states of a progress bar, which overwrite each other with `\r`, some and the last become lines.
    Memory is bounded, and what is printed comes out at once.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._sequences = _Sequences()
        self._lines = _Lines()
        self._coloured = False

    def feed(self, text: str) -> str:
        """The next piece, as far as it can be shown now."""
        return self._noted(self._lines.feed(self._sequences.feed(text)))

    def flush(self) -> str:
        """What is left at the end; colours end, too."""
        rest = self._noted(self._lines.flush())
        end = RESET if self._coloured else ""
        self._begin()
        return rest + end

    def _noted(self, text: str) -> str:
        if colours := _COLOUR.findall(text):
            self._coloured = colours[-1] not in (RESET, "\x1b[m")
        return text


class _Sequences:
    r"""Leaves out everything but printable characters, `\n`, `\r`, `\t`, and colours."""

    def __init__(self) -> None:
        self._begun = ""
        self._until: re.Pattern[str] | None = None
        self._colours = 0

    def feed(self, text: str) -> str:
        if not self._begun and self._until is None and not _ODD.search(text):
            self._colours = self._colours if not text else 0
            return text
        data, self._begun = self._begun + text, ""
        ready, position = [], 0
        while position < len(data):
            if self._until is not None:
                end = self._until.search(data, position)
                if end is None:
                    break
                self._until, position = None, end.end()
                continue
            begin = _BEGINS.search(data, position)
            if visible := data[position : begin.start() if begin else len(data)].translate(_VISIBLE):
                ready.append(visible)
                self._colours = 0
            if begin is None:
                break
            position = begin.start()
            sequence = _SEQUENCE.match(data, position)
            if sequence is None:  # cannot be: its last alternatives take each beginning
                position += 1
                continue
            parameters, final = sequence["parameters"], sequence["final"]
            if sequence["string"]:
                self._until = _STRING_END
            elif parameters is not None and final:
                if final == "m" and self._colours < MOST_COLOURS and (colour := _colour(parameters)):
                    ready.append(colour)
                    self._colours += 1
            elif parameters is not None and len(parameters) == _LONGEST_PARAMETERS:
                self._until = _PARAMETERS_END
            elif not sequence["end"] and data[position] in "\x1b\x9b" and sequence.end() == len(data):
                self._begun = data[position:]
                break
            position = sequence.end()
        return "".join(ready)


def _colour(parameters: str) -> str:
    """The sequence with what is harmless of it; nothing when that is nothing."""
    if len(parameters) > _LONGEST_COLOUR or not re.fullmatch(r"[0-9;:]*", parameters):
        return ""
    given, kept = parameters.split(";"), []
    while given:
        text = given.pop(0)
        number = int(text.partition(":")[0] or 0)
        if number in (38, 48, 58) and ":" not in text:
            count = {"5": 1, "2": 3}.get(given[0] if given else "")
            if count is None or len(given) <= count:
                break
            kept += [text, *given[: count + 1]]
            del given[: count + 1]
        elif number in _COLOURS:
            kept.append(text)
    return f"\x1b[{';'.join(kept)}m" if kept else ""


class _Visible(dict[int, "int | str | None"]):
    """How each character is shown, for `str.translate`; found out when it first comes."""

    def __missing__(self, code: int) -> int | str | None:
        shown = _shown(code)
        if len(self) < 4096:
            self[code] = shown
        return shown


def _shown(code: int) -> int | str | None:
    character = chr(code)
    if character.isprintable() or character in "\n\t\r":
        return code
    if character in "\v\f":
        return "\n"
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cf"):
        return None
    return " " if kind in ("Zs", "Zl", "Zp") else "\N{REPLACEMENT CHARACTER}"


_VISIBLE = _Visible()


class _Lines:
    """Turns what overwrites itself, as progress bars do, into lines: some of its states, and always the last.

    A state that will be shown is passed on while it comes; which ones are is a matter of counting, not of time.
    """

    def __init__(self) -> None:
        self._lost_colours = False
        self._begin_line()

    def _begin_line(self) -> None:
        self._count = 0
        self._streaming = True  # what is printed before any `\r` is an ordinary line
        self._visible = False
        self._dirty = False
        self._current = ""
        self._kept = ""

    def feed(self, text: str) -> str:
        if "\r" not in text and self._streaming and not self._lost_colours:
            if "\n" in text:
                self._begin_line()
            self._noted(text.rpartition("\n")[2])
            return text
        ready: list[str] = []
        for piece in re.split(r"([\r\n])", text):
            if piece == "\r":
                self._end_state()
                self._streaming = False
            elif piece == "\n":
                self._end_state()
                self._show(self._kept, ready)
                ready.append(f"{self._restored()}\n")
                self._begin_line()
            elif piece:
                self._add(piece, ready)
        return "".join(ready)

    def flush(self) -> str:
        ready: list[str] = []
        self._end_state()
        self._show(self._kept, ready)
        self._begin_line()
        return "".join(ready)

    def _add(self, text: str, ready: list[str]) -> None:
        if self._streaming:
            self._noted(text)
            ready.append(text)
            return
        self._current += text
        long = len(self._current) > LONGEST_STATE
        if long or (_is_shown(self._count + 1) and _visible(self._current)):
            self._forget(self._kept)
            self._kept = ""
            self._show(self._current, ready)
            self._current, self._streaming = "", True

    def _end_state(self) -> None:
        if self._streaming:
            self._count += self._visible
        elif _visible(self._current):
            self._forget(self._kept)
            self._kept = self._current
            self._count += 1
        else:
            self._forget(self._current)
        self._current, self._visible = "", False

    def _show(self, state: str, ready: list[str]) -> None:
        if not state:
            return
        if self._dirty:
            ready.append("\n")
        ready.append(self._restored() + state)
        self._noted(state)

    def _restored(self) -> str:
        """Ends colours that a state which was left out may have ended."""
        lost, self._lost_colours = self._lost_colours, False
        return RESET if lost else ""

    def _noted(self, text: str) -> None:
        self._dirty = self._dirty or bool(text)
        self._visible = self._visible or _visible(text)

    def _forget(self, state: str) -> None:
        self._lost_colours = self._lost_colours or "\x1b" in state


def _is_shown(number: int) -> bool:
    return number % EACH_STATE == 0 or number & (number - 1) == 0


def _visible(text: str) -> bool:
    return bool(_COLOUR.sub("", text).strip())
