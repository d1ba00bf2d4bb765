"""What Jenkins says of a build or a job, read from its JSON into plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Self

from pydantic import TypeAdapter

from orchestrator.errors import JenkinsBadAnswer
from orchestrator.resources.jenkins.checkout import Checkout, own_checkout

BUILD_SUMMARY_FIELDS = "number,timestamp,building,result"
"""What tells a new build from a known one, and a finished one from a running one."""

BUILD_FIELDS = (
    f"{BUILD_SUMMARY_FIELDS},duration,url,actions[lastBuiltRevision[SHA1,branch[SHA1,name]],remoteUrls,scmName,"
    "revision[hash,pullHash,merge,origin[hash]],parameters[name,value]]"
)
"""All that a `Build` holds. Stapler leaves out what an action does not have.

https://javadoc.jenkins.io/plugin/git/hudson/plugins/git/util/BuildData.html
"""


@dataclass(frozen=True)
class BuildSummary:
    """The little that every tick asks of each of the newest builds.

    Attributes:
        number: Jenkins' build number.
        timestamp: when it was started, in milliseconds since 1970, by Jenkins' clock.
        result: SUCCESS, UNSTABLE, FAILURE, ABORTED or NOT_BUILT; None while it runs.
    """

    number: int
    timestamp: int
    result: str | None

    @property
    def finished(self) -> bool:
        """Whether the result is final."""
        return self.result is not None

    def succeeded(self, *, unstable: bool = False) -> bool:
        """Whether it ended as SUCCESS, or as UNSTABLE where that may pass."""
        return self.result == "SUCCESS" or (unstable and self.result == "UNSTABLE")


@dataclass(frozen=True)
class Build(BuildSummary):
    """One build.

    Attributes:
        job: full name of its job, `team/project`; of a multibranch project, `team/project/<branch>`
            with the branch as Jenkins stores it (`feature%2Fx`).
        duration_ms: how long it ran, in milliseconds.
        url: its page, for people.
        commit: the commit that was checked out; None when the build does not prove which one.
        branch: `main`, without remote or `refs/`.
        repository: the Git remote, without credentials.
        parameters: the build parameters; those that Jenkins hides are left out.
        change_request: it is of a pull or merge request, so that anybody may have written it.
        doubt: why there is no commit, or no repository that others can use: one sentence for people.
    """

    job: str
    duration_ms: int
    url: str
    commit: str | None = None
    branch: str | None = None
    repository: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)
    change_request: bool = False
    doubt: str | None = None

    @property
    def name(self) -> str:
        """`team/project #12`, for sentences."""
        return f"{self.job} #{self.number}"

    def to_json(self) -> dict[str, Any]:
        """The build as plain JSON; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        return TypeAdapter(cls).validate_python(data)


@dataclass(frozen=True)
class JobSummary:
    """The top of one job's history.

    Attributes:
        job: its full name.
        next_number: the number that its next build gets; None when Jenkins does not tell.
        newest: its newest builds, newest first.
        whole: there are no more builds than these.
    """

    job: str
    next_number: int | None
    newest: tuple[BuildSummary, ...]
    whole: bool


def build_summary_of(data: object, *, where: str) -> BuildSummary:
    """Read the fields of `BUILD_SUMMARY_FIELDS`.

    Raises:
        JenkinsBadAnswer: it is no build.
    """
    fields = _object(data, where)
    result = fields.get("result")
    if result is not None and not isinstance(result, str):
        raise _wrong(where, f"a build whose result is {result!r}")
    running = fields.get("building") is True or result is None
    return BuildSummary(
        _integer(fields, "number", where), _integer(fields, "timestamp", where), None if running else result
    )


def build_of(data: object, *, job: str, url: str, project: str | None, where: str) -> Build:
    """Read the fields of `BUILD_FIELDS`.

    Args:
        data: one element of `allBuilds`, or the answer of a build's own `api/json`.
        job: full name of its job.
        url: the build's page, should Jenkins not name it.
        project: MLPROJECT_URI, if set, to tell the project's own checkout from other ones.
        where: the address that was asked, for errors.

    Raises:
        JenkinsBadAnswer: it is no build.
    """
    summary = build_summary_of(data, where=where)
    fields = _object(data, where)
    reported = fields.get("url")
    reported_actions = fields.get("actions")
    actions = reported_actions if isinstance(reported_actions, list) else []
    actions = [action for action in actions if isinstance(action, dict)]
    parameters = dict(_parameters(actions))
    checkout = own_checkout(actions, job=job, project=project, parameters=parameters) or Checkout()
    return Build(
        number=summary.number,
        timestamp=summary.timestamp,
        result=summary.result,
        job=job,
        duration_ms=max(0, _integer(fields, "duration", where, default=0)),
        url=reported if isinstance(reported, str) and reported.startswith(("http://", "https://")) else url,
        commit=checkout.commit,
        branch=checkout.branch,
        repository=checkout.remote,
        parameters=parameters,
        change_request=checkout.change_request,
        doubt=checkout.doubt,
    )


def job_summary_of(data: object, *, job: str, asked: int, where: str) -> JobSummary:
    """Read `nextBuildNumber` and the newest builds of a job.

    Args:
        data: the job's JSON.
        job: its full name.
        asked: how many builds were asked for.
        where: the address that was asked, for errors.

    Raises:
        JenkinsBadAnswer: it is no job.
    """
    fields = _object(data, where)
    newest = tuple(build_summary_of(item, where=where) for item in listed(fields, "allBuilds", where))
    check_order(newest, where)
    following = _integer(fields, "nextBuildNumber", where, default=0)
    return JobSummary(job, following or None, newest, whole=len(newest) < asked)


def check_order(builds: Sequence[BuildSummary], where: str) -> None:
    """Make sure that builds come newest first, each one once.

    Raises:
        JenkinsBadAnswer: they do not.
    """
    if any(newer.number <= older.number for newer, older in pairwise(builds)):
        raise _wrong(where, "builds that are not in order, newest first")


def listed(fields: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """The list in a field.

    Raises:
        JenkinsBadAnswer: there is no list.
    """
    items = fields.get(key)
    if not isinstance(items, list):
        raise _wrong(where, f"JSON without the list {key}")
    return items


def _parameters(actions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for action in actions:
        parameters = action.get("parameters")
        for parameter in parameters if isinstance(parameters, list) else []:
            if isinstance(parameter, dict) and isinstance(name := parameter.get("name"), str):
                value = parameter.get("value")
                if isinstance(value, bool):
                    yield name, str(value).lower()
                elif isinstance(value, str | int | float):
                    yield name, str(value)


def _object(data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _wrong(where, f"{type(data).__name__} in place of a JSON object")
    return data


def _integer(fields: Mapping[str, Any], key: str, where: str, *, default: int | None = None) -> int:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(where, f"JSON whose {key} is {value!r}")
    return value


def _wrong(where: str, what: str) -> JenkinsBadAnswer:
    return JenkinsBadAnswer(f"{where} answered with {what}: is JENKINS_URL a Jenkins, and JENKINS_JOB_NAME a job?")
