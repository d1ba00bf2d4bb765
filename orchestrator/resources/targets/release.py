"""What a target holds: a release, which is a model's files and the record that says what they are.

The record lies beside the files, so that files and record change in one step, whoever looks and whenever. It is the
only memory of what is deployed where.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

from orchestrator.errors import DeploymentError, TargetHeld
from orchestrator.printable import printable

RECORD = "deployed.json"
"""The record's name among the files."""

LARGEST_RECORD = 2**16
RELEASES = "releases"
"""Where a target keeps releases, each in a folder that is named after its version."""

KEPT_RELEASES = 3
"""So many releases are kept: the one in use, the one before it, and older ones."""

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PIECE = 2**20


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Whose model is in use in a target.

    Attributes:
        pipeline: its name.
        deployment: the installation of the orchestrator (ORCHESTRATOR_DEPLOYMENT).
    """

    pipeline: str
    deployment: str

    def __str__(self) -> str:
        return f"pipeline {self.pipeline!r} of installation {self.deployment!r}"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A model, as it stands in a target.

    Attributes:
        model: the registered model's name; empty: it is no version of one.
        version: its number; else what names the model instead, such as `m-…`.
        run_id: the MLflow run that it comes from.
        build: the Jenkins build's number; empty: not known.
        commit: the build's commit; empty: not known.
        pipeline: who deployed it.
        deployment: the installation of the orchestrator that did.
        deployed_at: when; ISO 8601, UTC.
    """

    model: str
    version: str
    run_id: str
    build: str = ""
    commit: str = ""
    pipeline: str
    deployment: str
    deployed_at: str = ""

    def __post_init__(self) -> None:
        if not _FOLDER.fullmatch(self.version):
            raise DeploymentError(f"{self.version[:100]!r} cannot be the version of a model that is to be deployed")

    @property
    def holder(self) -> Holder:
        """Whose it is."""
        return Holder(pipeline=self.pipeline, deployment=self.deployment)

    @property
    def title(self) -> str:
        """What people call it."""
        return f"version {self.version} of {self.model}" if self.model else f"model {self.version}"

    def is_same_model(self, other: Release | None) -> bool:
        """Whether the other one is the same version of the same model."""
        return other is not None and (self.model, self.version, self.run_id) == (
            other.model,
            other.version,
            other.run_id,
        )

    def now(self) -> Self:
        """The same, deployed at this moment."""
        return replace(self, deployed_at=datetime.now(UTC).isoformat(timespec="seconds"))

    def dump(self) -> str:
        """The record's text."""
        return f"{json.dumps(asdict(self), indent=2)}\n"

    @classmethod
    def parse(cls, text: str | bytes, *, place: str) -> Self:
        """Read a record.

        Args:
            text: the record.
            place: the target that it is in, for the error.

        Raises:
            TargetHeld: it is none of ours.
        """
        try:
            found = json.loads(text[:LARGEST_RECORD])
            return cls._of(found)
        except (ValueError, LookupError, TypeError, RecursionError, DeploymentError) as error:
            raise TargetHeld(
                f"{place} holds a {RECORD} that the orchestrator has not written ({error}): name an empty target, or "
                "remove it"
            ) from error

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> Self:
        return cls(**{field.name: printable(str(found[field.name]))[:500] for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file of a model.

    Attributes:
        path: below the model's folder, with slashes.
        size: in bytes.
        sha256: of its content, in hexadecimal.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model's files on this machine.

    Attributes:
        folder: holds them.
        files: all of them.
    """

    folder: Path
    files: tuple[ModelFile, ...]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """What is in a folder.

        Raises:
            DeploymentError: a name in it cannot be deployed.
        """
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        found = [
            ModelFile(
                path=require_relative(path.relative_to(folder).as_posix()),
                size=path.stat().st_size,
                sha256=sha256_of(path),
            )
            for path in paths
        ]
        return cls(folder=folder, files=tuple(found))

    @property
    def size(self) -> int:
        """Of all files together, in bytes."""
        return sum(file.size for file in self.files)

    def read(self, path: str) -> bytes | None:
        """The content of one file; None: there is none of this name."""
        known = any(file.path == path for file in self.files)
        return (self.folder / path).read_bytes() if known else None


class Target(Protocol):
    """Where a model is put into use."""

    @property
    def place(self) -> str:
        """What it is and where, for people."""

    def state(self) -> Release | None:
        """What is in use there, read from the target itself; None: nothing.

        Raises:
            TargetHeld: what is there is not ours.
            TargetUnavailable: the target does not answer.
        """

    def lost(self) -> Release | None:
        """What was in use there and is not any more, through nobody's decision; None: nothing, or that cannot be.

        Raises:
            TargetHeld: what is there is not ours.
            TargetUnavailable: the target does not answer.
        """

    def deploy(self, release: Release, model: ModelFolder, *, take_over: bool = False) -> Release | None:
        """Put a model into use, and keep the one before it. A crash at any point leaves one of the two in use.

        Args:
            release: what it is.
            model: its files.
            take_over: also where another pipeline's model is in use.

        Returns:
            What was in use before.

        Raises:
            DeploymentFailed: the model does not work there.
            TargetHeld: another pipeline's model is in use.
            TargetUnavailable: the target does not answer.
        """


def require_holder(found: Release | None, holder: Holder, *, place: str, take_over: bool) -> None:
    """Refuse a target in which another pipeline's model is in use.

    Raises:
        TargetHeld: it is.
    """
    if found is None or take_over or found.holder == holder:
        return
    raise TargetHeld(
        f"{place} is held by {found.holder}, whose {found.title} is in use there; name another target, or take it over "
        f"once, from {holder}, with `orchestrator deploy --take-over`"
    )


def require_relative(path: str) -> str:
    """The path of a model's file, as it may stand below a folder.

    Raises:
        DeploymentError: it leads elsewhere, or cannot be a file's.
    """
    parts = path.split("/")
    if (
        any(part in ("", ".", "..") for part in parts)
        or len(path) > 1000
        or any(len(part.encode(errors="replace")) > 255 for part in parts)
        or "\\" in path
        or not path.isprintable()
    ):
        raise DeploymentError(f"the model has a file named {path[:200]!r}, which cannot be deployed")
    if path == RECORD:
        raise DeploymentError(
            f"the model has a file named {RECORD}, which is the name of the orchestrator's own record"
        )
    return path


def pieces_of(path: Path) -> Iterator[bytes]:
    """A file's content, piece by piece."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def sha256_of(path: Path) -> str:
    """The digest of a file's content."""
    digest = hashlib.sha256()
    for piece in pieces_of(path):
        digest.update(piece)
    return digest.hexdigest()
