"""A directory as target: `current` is a link to the release in use, switched by renaming another link onto it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import DeploymentError, TargetHeld, TargetUnavailable
from orchestrator.resources.targets.release import (
    KEPT_RELEASES,
    LARGEST_RECORD,
    RECORD,
    RELEASES,
    ModelFile,
    ModelFolder,
    Release,
    pieces_of,
    require_holder,
    sha256_of,
)

CURRENT = "current"

_INCOMING = ".incoming-"
_NEXT = ".next"
_LOCK = ".lock"


class DirectoryTarget:
    """A directory of this machine, or one that it mounts.

        /srv/models/churn/current          -> releases/7
        /srv/models/churn/releases/7/      MLmodel, ..., deployed.json
        /srv/models/churn/releases/6/

    Args:
        directory: is made if there is none.
        keep: how many releases are kept, at least 2.
    """

    def __init__(self, directory: Path, *, keep: int = KEPT_RELEASES) -> None:
        self._directory = directory
        self._releases = directory / RELEASES
        self._current = directory / CURRENT
        self._keep = max(2, keep)

    @property
    def place(self) -> str:
        """The directory."""
        return f"directory {self._directory}"

    def state(self) -> Release | None:
        """What `current` leads to; see `Target`."""
        with self._explained():
            if not self._current.is_symlink():
                if self._current.exists():
                    raise TargetHeld(f"{self._current} is not a link of the orchestrator's: name another directory")
                return None
            try:
                with (self._current / RECORD).open("rb") as file:
                    return Release.parse(file.read(LARGEST_RECORD), place=self.place)
            except FileNotFoundError:
                raise TargetHeld(
                    f"{self._current} leads to {self._current.readlink()}, where there is no {RECORD}: name another "
                    "directory, or remove the link"
                ) from None

    def lost(self) -> Release | None:
        """Nothing: a link outlives a restart; see `Target`."""
        return None

    def deploy(self, release: Release, model: ModelFolder, *, take_over: bool = False) -> Release | None:
        """Copy the files, and switch the link; see `Target`."""
        with self._explained(), self._locked():
            before = self.state()
            require_holder(before, release.holder, place=self.place, take_over=take_over)
            if release.is_same_model(before) and release.holder == (before and before.holder) and self._is_whole(model):
                return before
            self._remove_leftovers()
            old = self._current.readlink().name if before else ""
            name = self._free_name(release.version, in_use=old)
            incoming = self._releases / f"{_INCOMING}{name}"
            _fill(incoming, model, release.now().dump())
            folder = self._releases / name
            if folder.exists():  # an earlier deployment of this version, long out of use
                folder.rename(self._releases / f"{_INCOMING}{name}-old")
            incoming.rename(folder)
            _flush(self._releases)
            self._switch(name)
            self._prune({name, old})
            return before

    def _is_whole(self, model: ModelFolder) -> bool:
        return all(_has(self._current / file.path, file) for file in model.files)

    def _free_name(self, version: str, *, in_use: str) -> str:
        """The version; another name when the folder of this name is in use, and its content not what it should be."""
        if version != in_use:
            return version
        return next(
            name for number in range(2, 1000) if not (self._releases / (name := f"{version}_{number}")).exists()
        )

    def _switch(self, name: str) -> None:
        following = self._directory / _NEXT
        following.unlink(missing_ok=True)
        following.symlink_to(Path(RELEASES) / name)
        following.replace(self._current)
        _flush(self._directory)

    def _prune(self, names: set[str]) -> None:
        """Remove the oldest releases but these."""
        self._remove_leftovers()
        others = [folder for folder in self._releases.iterdir() if folder.name not in names]
        others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in others[self._keep - len(names - {""}) :]:
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Of deployments that did not end."""
        for folder in self._releases.glob(f"{_INCOMING}*"):
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._releases.mkdir(parents=True, exist_ok=True)
        with (self._directory / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TargetUnavailable(f"another deployment to {self.place} is under way") from None
            yield

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
            raise TargetUnavailable(f"{self.place} cannot be used ({reason})") from error


def _fill(folder: Path, model: ModelFolder, record: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in model.files:
        place = folder / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with place.open("xb") as copy:
            for piece in pieces_of(model.folder / file.path):
                digest.update(piece)
                copy.write(piece)
            copy.flush()
            os.fsync(copy.fileno())
        if digest.hexdigest() != file.sha256:
            raise DeploymentError(f"{model.folder / file.path} changed while it was copied")
    with (folder / RECORD).open("x") as written:
        written.write(record)
        written.flush()
        os.fsync(written.fileno())
    for made in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _flush(made)


def _has(place: Path, file: ModelFile) -> bool:
    return place.is_file() and place.stat().st_size == file.size and sha256_of(place) == file.sha256


def _flush(folder: Path) -> None:
    """See to it that what was renamed in a folder stays so when the machine loses its power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
