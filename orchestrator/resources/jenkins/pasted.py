"""Job and server as people paste them from the browser: pages of a job, of a build, of a view, of Blue Ocean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit, urlunsplit

from orchestrator.errors import SettingsError

_RESERVED = "?*/\\%!@#$^&|<>[]:;"
"""Not in the name of a job that somebody made; Jenkins writes them as `%2F` and so on in the names of branch jobs.

https://github.com/jenkinsci/jenkins/blob/master/core/src/main/java/jenkins/model/Jenkins.java (`checkGoodName`)
"""

_ESCAPED_SLASH = re.compile(r"(?i)%(25)?2f")
_ESCAPE = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_BUILD_PAGE = re.compile(r"\d+|(last|upstream)[A-Za-z]*Build|console\w*|configure|changes|ws|build\w*|api|activity")
_HOST = re.compile(r"(?=.*[.:])[A-Za-z0-9.-]+(:\d+)?|localhost")
_LONGEST_SHOWN = 200
_PARENTS = frozenset(["job", "view"])


def job_name(text: str, *, server: str = "") -> str:
    """The full name of a job: `team/project`, also given as the address of one of its pages.

    Args:
        text: JENKINS_JOB_NAME as users write it.
        server: JENKINS_URL, whose path may stand before the job's.

    Raises:
        SettingsError: it names no job.
    """
    try:
        segments = _segments(text, server)
    except ValueError:
        segments = []
    shown = repr(re.sub(r"//[^/]*@", "//", text)[:_LONGEST_SHOWN])
    if not segments:
        raise SettingsError(
            f"JENKINS_JOB_NAME={shown} names no job: write it as in team/project, or paste the address of the job's "
            "page, as in https://jenkins.example.com/job/team/job/project/"
        )
    if not all(map(can_be_job, segments)):
        raise SettingsError(
            f"JENKINS_JOB_NAME={shown} cannot be a job: it holds characters that cannot be printed, or .."
        )
    return "/".join(segments)


def server_address(text: str) -> str:
    """JENKINS_URL without what follows Jenkins' own path, where it is the address of a page of a job, view or login."""
    try:
        parts = urlsplit(text.strip())
    except ValueError:
        return text
    segments = parts.path.split("/")
    for index, segment in enumerate(segments):
        page = segments[index + 1] if index + 1 < len(segments) else ""
        if (segment in _PARENTS and page) or (segment, page) in _PAGES or (segment == "login" and not page):
            return urlunsplit((parts.scheme, parts.netloc, "/".join(segments[:index]), "", ""))
    return text


_PAGES = frozenset([("blue", "organizations"), ("blue", "pipelines"), ("api", "json")])


def can_be_job(name: str) -> bool:
    """Whether a job of this name, as Jenkins stores it or as people read it, can be shown and asked for."""
    return name.isprintable() and unquote(name).isprintable() and name not in (".", "..")


def _segments(text: str, server: str) -> list[str]:
    text = text.strip()
    for _ in range(2):
        if "/" not in text and _ESCAPED_SLASH.search(text):
            text = unquote(text)
    if "://" in text:
        return _of_page(_split(urlsplit(text).path))
    path = re.split(r"[?#]", text, maxsplit=1)[0]
    segments = _split(path.replace("»", "/"))
    base = _split(urlsplit(server).path)
    if base and segments[: len(base)] == base and segments[len(base) :][:1] in (["job"], ["view"], ["blue"]):
        return _of_page(segments[len(base) :])
    is_page = text.startswith("/") or (len(segments) > 1 and _HOST.fullmatch(segments[0]))
    if is_page and (found := _of_page(segments)):
        return found
    if segments[:1] in (["blue"], ["view"]) and (found := _of_page(segments)):
        return found
    if "job" not in segments[:-1]:
        return [_plain(segment) for segment in segments]
    # `job/team/job/project`, or `team/job/project`
    begin = segments.index("job")
    found, rest = _pairs(segments[begin:])
    if rest and not _BUILD_PAGE.fullmatch(rest[0]):
        return []
    return [*(_plain(segment) for segment in segments[:begin]), *found]


def _split(path: str) -> list[str]:
    return [segment.strip() for segment in path.split("/") if segment.strip()]


def _of_page(segments: Sequence[str]) -> list[str]:
    """The job of a page. Jenkins' own path or a view stands before its first `job`, a build may follow the last."""
    for index, segment in enumerate(segments):
        if segment == "blue" and segments[index + 1 : index + 2] == ["organizations"]:
            name = unquote(segments[index + 3]) if len(segments) > index + 3 else ""
            return [] if name == "pipelines" and len(segments) == index + 4 else _split(name)
        if segment in _PARENTS:
            return _pairs(segments[index:])[0]
    return []


def _pairs(segments: Sequence[str]) -> tuple[list[str], Sequence[str]]:
    """The jobs of `job/X` pairs, with views in between, and what follows the last pair."""
    jobs: list[str] = []
    while len(segments) > 1 and segments[0] in _PARENTS:
        if segments[0] == "job":
            name = unquote(segments[1])
            # Of a branch job, an address that was decoded once too often; no other name holds a slash.
            jobs += [name.replace("/", "%2F")] if jobs else _split(name)
        segments = segments[2:]
    return jobs, segments


def _plain(name: str) -> str:
    """A name as Jenkins stores it: `My Project` of `My%20Project`, and `feature%2Fx` as it is."""

    def decoded(found: re.Match[str]) -> str:
        text = unquote(found[0])
        return found[0] if any(sign in _RESERVED + "\ufffd" for sign in text) else text

    return _ESCAPE.sub(decoded, name)
