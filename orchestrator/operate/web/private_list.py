"""A list of small entries in one 0600 JSON file, which several processes of ours change and read."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from orchestrator.errors import SettingsError

Entry = TypeVar("Entry")

_log = logging.getLogger(__name__)


class PrivateList(Generic[Entry]):
    """The entries of one file; read anew when it has changed, written whole and at once.

    Args:
        file: the file, which need not exist, nor its folder.
        what: the entries' name in messages, such as `machine tokens`.
        remedy: what to do about a file that cannot be understood, after `is not as we write it;`.
        from_json: makes an entry of a JSON object; ValueError, TypeError or KeyError: it is none.
        to_json: the reverse.
    """

    def __init__(
        self,
        file: Path,
        *,
        what: str,
        remedy: str,
        from_json: Callable[[Mapping[str, Any]], Entry],
        to_json: Callable[[Entry], Mapping[str, object]],
    ) -> None:
        self._file = file
        self._what = what
        self._remedy = remedy
        self._from_json = from_json
        self._to_json = to_json
        self._seen: tuple[int, ...] | None = None  # of no file: there are no entries
        self._entries: Sequence[Entry] = ()

    def read(self) -> list[Entry]:
        """The entries, in their order.

        Raises:
            SettingsError: the file cannot be used.
        """
        try:
            with self._file.open(encoding="utf-8") as file:
                if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise SettingsError(f"others may change {self._file}; look into it, then run chmod 600 on it")
                return [self._from_json(entry) for entry in json.load(file)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SettingsError(f"cannot read {self._file}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SettingsError(f"{self._file} is not as we write it; {self._remedy}") from error

    def current(self) -> Sequence[Entry]:
        """The entries as they are now; none while the file cannot be used, which is logged once."""
        try:
            status = self._file.stat()
            seen: tuple[int, ...] | None = (status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode)
        except OSError:
            seen = None
        if seen != self._seen:
            try:
                self._entries = self.read()
            except SettingsError as error:
                _log.error("Refusing all %s: %s", self._what, error)
                self._entries = ()
            self._seen = seen
        return self._entries

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
        objects = [self._to_json(entry) for entry in entries]
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
