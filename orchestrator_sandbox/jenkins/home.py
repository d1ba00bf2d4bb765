"""What the sandbox's Jenkins keeps on disk: jobs, their builds and their console logs."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote

BY_PUSH = "Started by an SCM change"


@dataclass(frozen=True)
class JobConfig:
    """How a job was configured.

    Attributes:
        kind: a multibranch project builds every branch; a folder and an organization only hold jobs.
        repository: Git URL; None: the job cannot build, it only has builds that were added.
        branch: the branch that it builds.
        command: what a build runs in the checkout, after "python"; exit status 0 is a success.
        publish: a program of the checkout, with its arguments, that publishes what the tests have passed; empty: none.
        unstable: exit status 1 (pytest: some tests failed) is UNSTABLE instead of FAILURE.
        keep: log rotation: only this many of the newest builds are kept; None: all.
        library: Git URL of a shared library, which leaves a BuildData of its own in each build.
        parameters: the job's parameters and their defaults.
        triggered: a new commit starts a build.
        marks_primary: of a multibranch project: its branch source marks the branch of the remote's HEAD, as most do
            (Jenkins shows the mark since 2026).
        primary: of a branch: it is marked so.
        contributor: of a branch: whose pull request it is; None: nobody's.
    """

    kind: Literal["freestyle", "pipeline", "multibranch", "folder", "organization"] = "freestyle"
    repository: str | None = None
    branch: str = "main"
    command: tuple[str, ...] = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    publish: tuple[str, ...] = ()
    unstable: bool = False
    keep: int | None = None
    library: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    triggered: bool = True
    marks_primary: bool = True
    primary: bool = False
    contributor: str | None = None


@dataclass(frozen=True)
class BuildRecord:
    """One build. Times are in milliseconds, the timestamp since 1970; result is None while it runs."""

    number: int
    timestamp: int
    result: str | None = None
    duration: int = 0
    commit: str | None = None
    branch: str | None = None
    repository: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    cause: str = BY_PUSH
    queue_id: int = 0


class JobStore:
    """A job and its builds, kept in a directory of its own.

    Every state of a build is a line of builds.jsonl; the last line of a number counts.
    """

    def __init__(self, full_name: str, config: JobConfig, directory: Path) -> None:
        self.full_name = full_name
        self.directory = directory
        self.next_number = 1
        self.last_seen: str | None = None
        self._builds: dict[int, BuildRecord] = {}
        self._lock = threading.RLock()
        self._file = directory / "builds.jsonl"
        self._next = directory / "nextBuildNumber"
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        self.configure(config)
        self._load()

    def configure(self, config: JobConfig) -> None:
        """Change the configuration; the builds stay."""
        self.config = config
        described = {"name": self.full_name, **asdict(config)}
        (self.directory / "config.json").write_text(json.dumps(described))

    def _load(self) -> None:
        for line in self._file.read_text().splitlines() if self._file.exists() else ():
            build = BuildRecord(**json.loads(line))
            self._remember(build)
            self.last_seen = build.commit or self.last_seen
        if self._next.exists():
            self.next_number = max(self.next_number, int(self._next.read_text()))
        for build in self.builds():
            if build.result is None:  # the server went away under it
                self.save(replace(build, result="ABORTED"))

    @property
    def name(self) -> str:
        """The last part of the full name."""
        return self.full_name.rpartition("/")[2]

    def builds(self) -> list[BuildRecord]:
        """All builds there are, oldest first."""
        with self._lock:
            return list(self._builds.values())

    def newest_first(self) -> list[BuildRecord]:
        """All builds there are, newest first."""
        return self.builds()[::-1]

    def get(self, number: int) -> BuildRecord | None:
        """The build of that number, if it is (still) there."""
        return self._builds.get(number)

    def add(self, build: BuildRecord) -> BuildRecord:
        """Save a build under the job's next number, whatever its own says."""
        with self._lock:
            numbered = replace(build, number=self.next_number)
            self.save(numbered)
        return numbered

    def save(self, build: BuildRecord) -> None:
        """Write the new state of a build."""
        with self._lock:
            with self._file.open("a") as file:
                file.write(json.dumps(asdict(build)) + "\n")
            self._remember(build)

    def _remember(self, build: BuildRecord) -> None:
        if build.number not in self._builds and build.number < self.next_number:
            return  # it ran for so long that the log rotation took it away meanwhile
        self._builds[build.number] = build
        self.next_number = max(self.next_number, build.number + 1)
        while self.config.keep and len(self._builds) > self.config.keep:
            oldest = next(iter(self._builds))
            del self._builds[oldest]
            self.log(oldest).unlink(missing_ok=True)

    def delete(self, number: int) -> None:
        """Delete a build; its number is not used again."""
        with self._lock:
            self._next.write_text(str(self.next_number))
            self._builds.pop(number, None)
            self.log(number).unlink(missing_ok=True)
            self._file.write_text("".join(json.dumps(asdict(build)) + "\n" for build in self.builds()))

    def log(self, number: int) -> Path:
        """The file of a build's console output."""
        return self.directory / "logs" / f"{number}.log"


class Home:
    """All jobs, by full name, such as `team/project`, and `team/project/feature%2Fx` for a branch."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = threading.RLock()
        self.jobs: dict[str, JobStore] = {}
        for file in sorted(directory.glob("jobs/*/config.json")):
            config = json.loads(file.read_text())
            name = config.pop("name")
            config |= {key: tuple(config.get(key, ())) for key in ("command", "publish")}
            self.jobs[name] = JobStore(name, JobConfig(**config), file.parent)

    def create(self, full_name: str, config: JobConfig) -> JobStore:
        """Create a job, and the folders it is in; one that exists gets the new configuration."""
        with self.lock:
            parent = full_name.rpartition("/")[0]
            if parent and parent not in self.jobs:
                self.create(parent, JobConfig(kind="folder"))
            if store := self.jobs.get(full_name):
                store.configure(config)
            else:
                store = JobStore(full_name, config, self.directory / "jobs" / quote(full_name, safe=""))
                self.jobs[full_name] = store
            return store

    def remove(self, full_name: str) -> list[JobStore]:
        """Forget a job and everything in it; their directories are still there."""
        with self.lock:
            names = [name for name in self.jobs if f"{name}/".startswith(f"{full_name}/")]
            return [self.jobs.pop(name) for name in names]

    def children(self, full_name: str) -> list[JobStore]:
        """The jobs directly in a folder or multibranch project; of "" those at the top."""
        with self.lock:
            return [job for name, job in self.jobs.items() if name.rpartition("/")[0] == full_name]
