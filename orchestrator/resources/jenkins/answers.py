"""What Jenkins says of a build or a job, read from its JSON into plain values."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Self, TypeGuard, TypeVar

from pydantic import TypeAdapter

from orchestrator.errors import JenkinsBadAnswer
from orchestrator.resources.jenkins.checkout import Checkout, own_checkout
from orchestrator.resources.jenkins.parameters import kept_parameters, parameters_of
from orchestrator.resources.jenkins.pasted import can_be_job

BUILD_SUMMARY_FIELDS = "number,timestamp,building,result"
"""What tells a new build from a known one, and a finished one from a running one."""

BUILD_FIELDS = (
    f"{BUILD_SUMMARY_FIELDS},duration,url,actions[lastBuiltRevision[SHA1,branch[SHA1,name]],remoteUrls,scmName,"
    "revision[hash,pullHash,merge,origin[hash]],parameters[name,value]]"
)
"""All that a `Build` holds. Stapler leaves out what an action does not have.

https://javadoc.jenkins.io/plugin/git/hudson/plugins/git/util/BuildData.html
"""


BRANCH_FIELDS = "actions[_class]"
"""What tells a primary branch and a change request from other branches: the mere classes of a branch job's actions.

An action without `@ExportedBean` has no `_class` there: `PrimaryInstanceMetadataAction` has one since 2026 only.
https://github.com/jenkinsci/scm-api-plugin/tree/master/src/main/java/jenkins/scm/api/metadata
"""

LARGEST_NUMBER = 2**31 - 1
"""A build number is a Java `int`."""

LATEST_TIMESTAMP = 253_402_300_799_000
"""The end of the year 9999, in milliseconds: no later moment can be written down."""

_LONGEST_RESULT = 50
_LONGEST_ADDRESS = 2000

T = TypeVar("T", bound="BuildSummary")


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
class UnreadableBuild(BuildSummary):
    """A build of which Jenkins says what cannot be; its timestamp is 0, and it never counts as finished.

    Attributes:
        fault: what is wrong with it, in one sentence.
    """

    fault: str


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
        parameters: the build parameters that BUILD_PARAMETERS names; those that Jenkins hides are left out.
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
        newest: its newest builds, newest first; unreadable ones, too. Empty where only numbers were asked for.
        whole: there are no more builds than these.
        primary: Jenkins marks it as the repository's primary branch.
        change_request: Jenkins marks it as somebody's pull or merge request.
    """

    job: str
    next_number: int | None
    newest: tuple[BuildSummary, ...]
    whole: bool
    primary: bool = False
    change_request: bool = False


class JobKind(enum.Enum):
    """What JENKINS_JOB_NAME is the name of."""

    PLAIN = "job"
    MULTIBRANCH = "multibranch project"


@dataclass(frozen=True)
class JobOverview:
    """What one request tells of the job that is watched.

    Attributes:
        kind: whether it is one job, or has one for each branch.
        jobs: that job, or those of the branches.
        remote: where its repository is, as MLPROJECT_URI or the branch source says, and no build; None: unknown.
        faults: what could not be read, a sentence each.
    """

    kind: JobKind
    jobs: tuple[JobSummary, ...]
    remote: str | None = None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildPage:
    """A part of a job's history.

    Attributes:
        builds: newest first.
        whole: as many builds as were asked for, readable or not: there may be more after them.
        faults: what could not be read and has not even a number, a sentence each.
    """

    builds: tuple[Build | UnreadableBuild, ...]
    whole: bool
    faults: tuple[str, ...] = ()


def build_summary_of(data: object, *, where: str) -> BuildSummary:
    """Read the fields of `BUILD_SUMMARY_FIELDS`.

    Raises:
        JenkinsBadAnswer: it is no build.
    """
    fields = _object(data, where)
    result = fields.get("result")
    if result is not None and not (isinstance(result, str) and result.isprintable() and len(result) < _LONGEST_RESULT):
        raise _wrong(where, f"a build whose result is {_short(result)}")
    running = fields.get("building") is True or result is None
    return BuildSummary(
        number=_integer(fields, "number", where, largest=LARGEST_NUMBER),
        timestamp=_integer(fields, "timestamp", where, largest=LATEST_TIMESTAMP),
        result=None if running else result,
    )


def build_of(data: object, *, job: str, url: str, project: str | None, where: str, keep: Sequence[str] = ()) -> Build:
    """Read the fields of `BUILD_FIELDS`.

    Args:
        data: one element of `allBuilds`, or the answer of a build's own `api/json`.
        job: full name of its job.
        url: the build's page, should Jenkins not name it.
        project: MLPROJECT_URI, if set, to tell the project's own checkout from other ones.
        where: the address that was asked, for errors.
        keep: BUILD_PARAMETERS.

    Raises:
        JenkinsBadAnswer: it is no build.
    """
    summary = build_summary_of(data, where=where)
    fields = _object(data, where)
    reported = fields.get("url")
    reported_actions = fields.get("actions")
    actions = reported_actions if isinstance(reported_actions, list) else []
    actions = [action for action in actions if isinstance(action, dict)]
    parameters = dict(parameters_of(actions))
    checkout = own_checkout(actions, job=job, project=project, parameters=parameters) or Checkout()
    return Build(
        number=summary.number,
        timestamp=summary.timestamp,
        result=summary.result,
        job=job,
        duration_ms=_whole_number(fields.get("duration"), largest=LATEST_TIMESTAMP) or 0,
        url=reported if _is_web_address(reported) else url,
        commit=checkout.commit,
        branch=checkout.branch,
        repository=checkout.remote,
        parameters=kept_parameters(parameters, named=keep),
        change_request=checkout.change_request,
        doubt=checkout.doubt,
    )


def job_summary_of(data: object, *, job: str, asked: int, where: str, only_number: bool = False) -> JobSummary:
    """Read `nextBuildNumber` of a job, and its newest builds, as far as they are there.

    Args:
        data: the job's JSON.
        job: its full name.
        asked: how many builds a list in it was asked for.
        where: the address that was asked, for errors.
        only_number: no build was asked for.

    Raises:
        JenkinsBadAnswer: it is no job, or tells nothing of the builds that were asked for.
    """
    fields = _object(data, where)
    next_number = _whole_number(fields.get("nextBuildNumber"), largest=LARGEST_NUMBER + 1)
    if key := build_list(fields):
        items = listed(fields, key, where)
        whole = len(items) < asked
    else:
        last = fields.get("lastBuild")
        items = [] if last is None else [last]
        whole = last is None and "lastBuild" in fields
        if not items and not whole and (next_number is None or not only_number):
            raise _wrong(where, f"JSON that tells of no builds (it has {_names(fields)})")
    newest, _ = each_build(items, lambda item: build_summary_of(item, where=where), where=where)
    if next_number and newest and next_number <= newest[0].number:
        next_number = newest[0].number + 1  # a build began while Jenkins answered
    classes = _classes(fields.get("actions"))
    return JobSummary(
        job,
        next_number=next_number,
        newest=newest,
        whole=whole,
        primary=any(name.endswith(".PrimaryInstanceMetadataAction") for name in classes),
        change_request=any(name.endswith(".ContributorMetadataAction") for name in classes),
    )


def overview_of(
    answer: Mapping[str, Any], *, job: str, newest: int, per_branch: int, where: str, only_numbers: bool = False
) -> JobOverview:
    """Read what a job, or a multibranch project, says of itself and its branches.

    A branch that cannot be read costs that branch.

    Args:
        answer: the JSON of the job.
        job: its full name.
        newest: how many builds of a plain job were asked for.
        per_branch: how many builds of each branch.
        where: the address that was asked, for errors.
        only_numbers: no build was asked for.

    Raises:
        JenkinsBadAnswer: it is a folder, whose jobs the sentence names, or no job at all.
    """
    if _is_job(answer):
        summary = job_summary_of(answer, job=job, asked=newest, where=where, only_number=only_numbers)
        return JobOverview(JobKind.PLAIN, (summary,))
    items = listed(answer, "jobs", where)
    children = {
        name: item for item in items if isinstance(item, dict) and isinstance(name := item.get("name"), str) and name
    }
    own_class = answer.get("_class")
    is_multibranch = isinstance(own_class, str) and "multibranch" in own_class.lower()
    has_branches = any(map(_is_job, children.values()))
    if not is_multibranch and (isinstance(own_class, str) or (children and not has_branches)):
        raise JenkinsBadAnswer(_folder(job, own_class, children, where))
    summaries: list[JobSummary] = []
    faults = [f"{len(items) - len(children)} branches without a name"] if len(children) < len(items) else []
    for name, child in children.items():
        if not _is_job(child):
            continue
        if not can_be_job(name):
            faults.append(f"branch {ascii(name)[:100]}: its name cannot be printed, or leads elsewhere in an address")
            continue
        try:
            branch = f"{job}/{name}"
            summaries.append(job_summary_of(child, job=branch, asked=per_branch, where=where, only_number=only_numbers))
        except JenkinsBadAnswer as error:
            faults.append(f"branch {name}: {error}")
    return JobOverview(JobKind.MULTIBRANCH, tuple(summaries), _object_url(answer.get("actions")), tuple(faults))


BUILD_LISTS = ("builds", "allBuilds")
"""The newest 100 builds of a job, and all of them."""

_JOB_FIELDS = ("nextBuildNumber", "lastBuild", *BUILD_LISTS)


def _is_job(fields: Mapping[str, Any]) -> bool:
    return any(key in fields for key in _JOB_FIELDS)


def build_list(fields: Mapping[str, Any], wanted: str = "builds") -> str | None:
    """The name of the list of builds in an answer: the one that is wanted, else the other one, which some servers have.

    Args:
        fields: of the job.
        wanted: which of them was asked for.
    """
    names = sorted(BUILD_LISTS, key=lambda name: name != wanted)
    found = [name for name in names if isinstance(fields.get(name), list)]
    return next(iter([*found, *(name for name in names if fields.get(name) is not None)]), None)


def answers_question(answer: Mapping[str, Any], *, builds: bool) -> bool:
    """Whether Jenkins knows the fields of the question, of a job or of at least one branch.

    Args:
        answer: its JSON.
        builds: the newest build was asked for, not only the next number.
    """
    branches = answer.get("jobs")
    if isinstance(branches, list) and not _is_job(answer):
        jobs = [child for child in branches if isinstance(child, dict)]
        return not jobs or any(map(partial(_answers, builds=builds), jobs))
    return _answers(answer, builds=builds)


def _answers(fields: Mapping[str, Any], *, builds: bool) -> bool:
    has_number = _whole_number(fields.get("nextBuildNumber"), largest=LARGEST_NUMBER + 1) is not None
    return build_list(fields) is not None or (has_number and (not builds or "lastBuild" in fields))


def _folder(job: str, own_class: object, children: Mapping[str, Mapping[str, Any]], where: str) -> str:
    kind = own_class.rpartition(".")[2] if isinstance(own_class, str) and own_class.isprintable() else ""
    noun = "an organization folder" if kind == "OrganizationFolder" else "a folder" if "Folder" in kind else kind
    inside = [
        f"{job}/{name}" + (" (a folder)" if str(child.get("_class", "")).endswith("Folder") else "")
        for name, child in children.items()
        if can_be_job(name)
    ]
    visible_jobs = ", ".join(inside[:_SHOWN_JOBS]) + (
        f", and {len(inside) - _SHOWN_JOBS} more" if inside[_SHOWN_JOBS:] else ""
    )
    return (
        f"{where} is {noun or 'a folder without a job of its own'}, and its jobs are projects of their own: "
        f"set JENKINS_JOB_NAME to one in it ({visible_jobs or 'it is empty'})"
    )


_SHOWN_JOBS = 20


def each_build(
    items: Sequence[object], read: Callable[[object], T], *, where: str
) -> tuple[tuple[T | UnreadableBuild, ...], tuple[str, ...]]:
    """Read builds, each for itself; newest first, each number once.

    Args:
        items: of a list in Jenkins' answer.
        read: reads one; may raise JenkinsBadAnswer.
        where: the address that was asked, for errors.

    Returns:
        The builds, with those that are unreadable and have a number, and a sentence for each without one.

    Raises:
        JenkinsBadAnswer: not one of them is a build: this is no Jenkins.
    """
    builds: dict[int, T | UnreadableBuild] = {}
    faults: list[str] = []
    for item in items:
        try:
            build: T | UnreadableBuild = read(item)
        except JenkinsBadAnswer as error:
            number = _whole_number(item.get("number"), largest=LARGEST_NUMBER) if isinstance(item, dict) else None
            if number is None:
                faults.append(str(error))
                continue
            build = UnreadableBuild(number, 0, None, str(error))
        builds.setdefault(build.number, build)
    if faults and not builds:
        raise JenkinsBadAnswer(faults[0])
    return tuple(sorted(builds.values(), key=lambda build: -build.number)), tuple(faults)


def _classes(actions: object) -> list[str]:
    return [
        name
        for action in (actions if isinstance(actions, list) else [])
        if isinstance(action, dict) and isinstance(name := action.get("_class"), str)
    ]


def _object_url(actions: object) -> str | None:
    """The repository's page, which Git can clone on most hosts: `ObjectMetadataAction` of the branch source."""
    urls = [
        action.get("objectUrl") for action in (actions if isinstance(actions, list) else []) if isinstance(action, dict)
    ]
    return next((url for url in urls if _is_web_address(url)), None)


def _is_web_address(value: object) -> TypeGuard[str]:
    return (
        isinstance(value, str)
        and value.startswith(("http://", "https://"))
        and value.isprintable()
        and len(value) <= _LONGEST_ADDRESS
    )


def listed(fields: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """The list in a field.

    Raises:
        JenkinsBadAnswer: there is no list.
    """
    items = fields.get(key)
    if not isinstance(items, list):
        raise _wrong(where, f"JSON without the list {key}")
    return items


def _object(data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _wrong(where, f"{type(data).__name__} in place of a JSON object")
    return data


def _integer(fields: Mapping[str, Any], key: str, where: str, *, largest: int) -> int:
    number = _whole_number(fields.get(key), largest=largest)
    if number is None:
        raise _wrong(where, f"JSON whose {key} is {_short(fields.get(key))}")
    return number


def _whole_number(value: object, *, largest: int) -> int | None:
    """A whole number from 1 to `largest`; None for all else, `true` and 7.0 too."""
    return value if type(value) is int and 1 <= value <= largest else None


def _names(fields: Mapping[str, Any]) -> str:
    return _short(", ".join(sorted(fields)) or "nothing")


def _short(value: object) -> str:
    """As it stands in an error: of a number without end, Python prints nothing."""
    text = (
        f"a number of {value.bit_length()} bits" if isinstance(value, int) and value.bit_length() > 99 else repr(value)
    )
    return text if len(text) <= 100 else f"{text[:100]}..."


def _wrong(where: str, what: str) -> JenkinsBadAnswer:
    return JenkinsBadAnswer(f"{where} answered with {what}: is JENKINS_URL a Jenkins, and JENKINS_JOB_NAME a job?")
