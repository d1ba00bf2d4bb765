"""A training's output as it reaches a log: printable, masked, and no more of it than there is room for."""

from __future__ import annotations

import gzip
import logging
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from orchestrator.printable import RESET, PrintableStream, printable, without_colours
from orchestrator.remote.masking import Masker

_log = logging.getLogger(__name__)

MB = 1_000_000

LONGEST_TAIL = 2**20
"""Bytes of the end of a long output; they are held in memory."""

NOTICE_SECONDS = 60.0
"""Between two lines that say how much is left out."""

LONGEST_LINE = 500
"""Characters of a line that an error quotes."""

LAST_BYTES = 65_536
"""What the supervisor hands over of the output's end."""

TIMES_COMPRESSED = 10
"""The whole output may be so much larger than what is kept of it here, before it is compressed."""


class TrainingOutput:
    """Passes a training's output on to a log: its beginning at once and, when it is too long, its end at the end.

    Args:
        write: takes what is to be shown. When the disk takes no more, the output is left out, and the training goes on.
        secrets: what must not be shown.
        most_bytes: how much may be written, of UTF-8; a few lines more say what is left out.
        clock: seconds.

    Attributes:
        left_out: bytes that are not shown, as far as is known by now.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        *,
        secrets: Iterable[str],
        most_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._masker = Masker(secrets)
        self._printable = PrintableStream()
        self._clock = clock
        self._most_bytes = most_bytes
        self._tail_bytes = min(LONGEST_TAIL, most_bytes // 4)
        self._room = most_bytes - self._tail_bytes
        self._full = False
        self._can_write = True
        self._at_line_start = True
        self._tail: deque[tuple[str, int]] = deque()
        self._tail_size = 0
        self._to_drop = 0
        self._noticed_at = 0.0
        self.left_out = 0

    def feed(self, text: str) -> None:
        """Take the next piece."""
        if self._to_drop:
            text = self._after_gap(text)
        self._store(self._masker.feed(self._printable.feed(text)))
        if self._full and self.left_out and self._clock() - self._noticed_at >= NOTICE_SECONDS:
            self._notice("so far; its end follows when the training ends")

    def most_behind(self) -> int | None:
        """How many bytes may wait to be read; of more, only the last ones are wanted. None: all are."""
        return self._tail_bytes if self._full else None

    def skip(self, count: int) -> None:
        """So many bytes are left out before the next piece."""
        self._store(self._masker.feed(self._printable.flush()) + self._masker.flush())
        self.left_out += count
        # What follows may begin within a secret.
        self._to_drop = max(self._masker.longest, 1)

    def finish(self) -> None:
        """Nothing more comes: write what was held back, and the end of an output that was too long."""
        self._store(self._masker.feed(self._printable.flush()) + self._masker.flush())
        tail = "".join(text for text, _ in self._tail)
        self._tail.clear()
        if self._full and self.left_out:
            whole_lines = tail.partition("\n")[2] or tail[self._masker.longest :]
            self.left_out += len(tail.encode()) - len(whole_lines.encode())
            self._notice("; what follows is its end")
            tail = whole_lines
        self._pass_on(tail + (RESET if "\x1b" in tail else ""))

    def readable(self, lines: Sequence[str]) -> list[str]:
        """Lines of the output's end as an error may quote them: masked, without colours, and none too long.

        Args:
            lines: as they are on the instance; of a progress bar's states the last one stays.
        """
        text = "\n".join(_last_state(line) for line in lines)
        if len(text.encode(errors="replace")) >= LAST_BYTES - 4:
            text = text[self._masker.longest :]  # it may begin within a secret
        shown = self._masker.mask(without_colours(printable(text))).splitlines()
        return [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in shown]

    def _after_gap(self, text: str) -> str:
        """What follows the first line end behind a gap, or what is too far behind it to be of a secret before."""
        _, end, rest = text.partition("\n")
        if not end or len(text) - len(rest) > self._to_drop:
            rest = text[self._to_drop :]
        self._to_drop = 0 if rest else self._to_drop - len(text)
        self.left_out += len(text.encode(errors="replace")) - len(rest.encode(errors="replace"))
        return rest

    def _store(self, text: str) -> None:
        if self._full:
            self._keep(text)
            return
        size = len(text.encode())
        if size <= self._room:
            self._room -= size
            self._pass_on(text)
            return
        fits = text.encode()[: self._room].decode(errors="ignore")
        head = fits[: fits.rfind("\n") + 1]
        self._full = True
        self._noticed_at = self._clock()
        self._pass_on(head)
        self._keep(text[len(head) :])

    def _keep(self, text: str) -> None:
        """Put it into the tail, and let go what that has no room for."""
        if not text:
            return
        if len(text) > self._tail_bytes:
            end = text[-self._tail_bytes :]
            self.left_out += len(text.encode()) - len(end.encode())
            text = end
        size = len(text.encode())
        self._tail.append((text, size))
        self._tail_size += size
        while self._tail_size > self._tail_bytes and len(self._tail) > 1:
            _, gone = self._tail.popleft()
            self._tail_size -= gone
            self.left_out += gone

    def _notice(self, more: str) -> None:
        self._noticed_at = self._clock()
        begin = "" if self._at_line_start else f"{RESET}\n"
        separator = "" if more.startswith(";") else " "
        self._pass_on(
            f"{begin}[orchestrator: {self.left_out / MB:.1f} MB of output left out here (MAX_LOG_MB="
            f"{self._most_bytes / MB:g}){separator}{more}]\n"
        )

    def _pass_on(self, text: str) -> None:
        if not text:
            return
        if self._can_write:
            try:
                self._write(text)
            except UnicodeEncodeError:  # a log that takes ASCII only
                self._write(text.encode("ascii", "backslashreplace").decode())
            except OSError as error:
                self._can_write = False
                _log.warning(f"Leaving out the training's output, which goes on, because it cannot be written: {error}")
        self._at_line_start = text.endswith("\n")
        if not self._can_write:
            self.left_out += len(text.encode())


class FullError(Exception):
    """No more of the whole output is kept."""


@contextmanager
def whole_output(
    follow: Callable[[Callable[[str], None]], object], *, secrets: Iterable[str], most_bytes: int
) -> Iterator[IO[bytes]]:
    """All of a training's output as a compressed file without a name: printable and masked, too.

    The disk takes `most_bytes` at most; what does not fit, or is more than ten times that, is left out at the end, and
    the last line says so.

    Args:
        follow: passes the output on, from its beginning, to what it is given.
        secrets: what must not be shown.
        most_bytes: of the file.
    """
    stream, masker, seen = PrintableStream(), Masker(secrets), 0
    with tempfile.TemporaryFile() as file:
        with gzip.open(file, "wb", compresslevel=6) as packed:

            def write(text: str) -> None:
                nonlocal seen
                data = masker.feed(stream.feed(text)).encode()
                packed.write(data)
                seen += len(data)
                if seen > TIMES_COMPRESSED * most_bytes or file.tell() > most_bytes - LONGEST_TAIL // 8:
                    raise FullError

            try:
                follow(write)
                packed.write((masker.feed(stream.flush()) + masker.flush()).encode())
            except FullError:
                packed.write(f"\n[orchestrator: the output goes on; these are its first {seen / MB:.1f} MB]\n".encode())
        file.seek(0)
        yield file


def _last_state(line: str) -> str:
    states = [state for state in line.split("\r") if state.strip()]
    return states[-1] if states else ""
