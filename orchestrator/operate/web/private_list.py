"""A list of small entries in one 0600 JSON file, which several processes of ours change and read."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shlex
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from orchestrator.errors import SettingsError
from orchestrator.printable import printable
from orchestrator.settings.variables import exposure

Entry = TypeVar("Entry")

NOTHING_ELSE = ConfigDict(extra="forbid")
"""For an entry's `__pydantic_config__`: a field that we do not know, somebody may have meant to count."""

_log = logging.getLogger(__name__)


class PrivateList(Generic[Entry]):
    """The entries of one file; read anew when it has changed, written whole and at once.

    Args:
        file: the file, which need not exist, nor its folder.
        entry: a dataclass; each entry in the file has its fields, of their types.
        what: the entries' name in messages, such as `machine tokens`.
        remedy: what to do about a file that cannot be understood, after `is not as we write it (…);`.
    """

    def __init__(self, file: Path, entry: type[Entry], *, what: str, remedy: str) -> None:
        self._file = file
        self._what = what
        self._remedy = remedy
        self._adapter: TypeAdapter[list[Entry]] = TypeAdapter(list[entry])  # type: ignore[valid-type]
        self._seen: tuple[int, ...] | None = None  # of no file: there are no entries
        self._entries: Sequence[Entry] = ()
        self._fault: str | None = None

    def read(self) -> list[Entry]:
        """The entries, in their order.

        Raises:
            SettingsError: the file cannot be used.
        """
        try:
            return self._adapter.validate_json(self._text(), strict=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SettingsError(f"cannot read {self._file}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]  # never what stands there: it is secret
            place = printable(" ".join(str(part) for part in first["loc"])[:80])
            reason = f"{place}: {first['msg']}" if place else first["msg"]
            raise SettingsError(f"{self._file} is not as we write it ({reason}); {self._remedy}") from error

    def current(self) -> Sequence[Entry]:
        """The entries as they are now; none while the file cannot be used, which is logged once."""
        try:
            status = self._file.stat()
            seen: tuple[int, ...] | None = (
                status.st_mtime_ns,
                status.st_ino,
                status.st_size,
                status.st_mode,
                status.st_uid,
            )
        except FileNotFoundError:
            seen = None
        except OSError:
            seen = ()  # `read` says why
        if seen != self._seen or self._fault:
            try:
                self._entries, fault = self.read(), None
            except SettingsError as error:
                self._entries, fault = (), str(error)
                if fault != self._fault:
                    _log.error("Refusing all %s: %s", self._what, fault)
            self._seen, self._fault = seen, fault
        return self._entries

    @property
    def fault(self) -> str | None:
        """Why the file cannot be used now; None: it can, or there is none."""
        self.current()
        return self._fault

    def _text(self) -> bytes:
        descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # of a pipe, too: nobody waits
        try:
            self._require_private(os.fstat(descriptor))
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)

    def _require_private(self, status: os.stat_result) -> None:
        """Refuse what others may read or change: hashes of passwords can be guessed at, at home.

        Raises:
            SettingsError: others may, or it is no file.
        """
        if not stat.S_ISREG(status.st_mode):
            raise SettingsError(f"{self._file} is no file; {self._remedy}")
        if status.st_uid not in (os.geteuid(), 0):
            raise SettingsError(
                f"{self._file} belongs to another user of this machine (number {status.st_uid}), who can change it; "
                f"look into it, then run `chown {os.geteuid()} {shlex.quote(str(self._file))}`"
            )
        if fault := exposure(self._file, status):
            raise SettingsError(fault)

    @contextmanager
    def changing(self) -> Iterator[list[Entry]]:
        """The entries, to be changed in place; written at the end, while no other process writes.

        Raises:
            SettingsError: the file cannot be used or written.
        """
        try:
            file = Path(os.path.realpath(self._file))  # a link stays one, and both names of the file have one lock
            folder = file.parent
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _locked(folder / f"{file.name}.lock"):
                entries = self.read()
                yield entries
                self._write(file, entries)
        except OSError as error:
            raise SettingsError(f"cannot write {self._file}: {error.strerror}") from error

    def _write(self, target: Path, entries: Sequence[Entry]) -> None:
        objects = [asdict(entry) for entry in entries]  # type: ignore[call-overload]
        with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=f"{target.name}.", delete=False) as file:
            try:
                json.dump(objects, file, indent=2)  # mkstemp has made it 0600
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
