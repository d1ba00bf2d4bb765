"""The folder that Dagster keeps everything in, and the project's files: found, made, and kept from other users."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import SettingsError
from orchestrator.settings.variables import lookup

PACKAGE = Path(__file__).resolve().parents[1]

PRIVATE_UMASK = 0o077
OTHERS = 0o077
MADE_BY_DAGSTER = ("history", "logs", "schedules", "storage", ".logs_queue", ".nux", ".telemetry", "tmp")
"""What of a DAGSTER_HOME is certainly Dagster's: it may be a folder in which a user keeps other things, too."""

_log = logging.getLogger(__name__)


def project_file(name: str) -> Path:
    """A file of the project's root: of the folder we are in, else of our checkout, else the wheel's copy of ours.

    Raises:
        SettingsError: none of them holds it.
    """
    here = Path.cwd()
    for folder in (here, PACKAGE.parent, PACKAGE):
        if (folder / name).is_file():
            return folder / name
    raise SettingsError(f"there is no {name} in {here}; go to the project's folder first")


def dagster_home() -> Path:
    """DAGSTER_HOME of the environment or `.env`, else the folder .dagster right here.

    Raises:
        SettingsError: `.env` cannot be read.
    """
    return Path(lookup("DAGSTER_HOME") or ".dagster").expanduser().absolute()


def prepare_home(home: Path) -> Path:
    """Make a DAGSTER_HOME whose configuration is the project's dagster.yaml, unless it has its own.

    Args:
        home: the folder, which need not exist.

    Returns:
        The dagster.yaml that rules.

    Raises:
        SettingsError: there is none, or we may not write there.
    """
    config = home / "dagster.yaml"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not config.exists():
            config.unlink(missing_ok=True)  # a link to a project that has moved
            config.symlink_to(project_file("dagster.yaml"))
    except OSError as error:
        raise _unusable(home, error.strerror or str(error)) from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise _unusable(home, os.strerror(errno.EACCES))
    return config.resolve()


def _unusable(home: Path, reason: str) -> SettingsError:
    return SettingsError(
        f"cannot write to DAGSTER_HOME {home}: {reason}; let it be a folder of the user that we run as "
        f"(`chown {os.geteuid()} {shlex.quote(str(home))}`, in a container on its volume), or name another"
    )


@contextmanager
def private_files() -> Iterator[None]:
    """Let no other user read what is written meanwhile, here and in what is started: logs and events hold secrets."""
    before = os.umask(PRIVATE_UMASK)
    try:
        yield
    finally:
        os.umask(before)


def keep_private(home: Path) -> None:
    """Take from other users what an earlier version of ours has let them read in a DAGSTER_HOME."""
    closed = [path for path in _to_close(home) if _close(path)]
    if closed:
        _log.warning("Closed %s to other users of this machine (%d files and folders)", home, len(closed))


def _to_close(home: Path) -> Iterator[Path]:
    yield home
    for name in MADE_BY_DAGSTER:
        for folder, folders, files in os.walk(home / name):
            yield Path(folder)
            yield from (Path(folder) / file for file in (*files, *folders))


def _close(path: Path) -> bool:
    """Whether others could read it, and cannot any more."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) or not status.st_mode & OTHERS:
            return False
        path.chmod(stat.S_IMODE(status.st_mode) & ~OTHERS)
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.warning("Other users may read %s, and its mode cannot be changed: %s", path, error.strerror)
        return False
    return True
