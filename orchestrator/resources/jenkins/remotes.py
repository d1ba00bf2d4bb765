"""Git remotes as builds name them: read by an allow-list of syntaxes, without anything that may be a login.

What a Jenkinsfile checks out is anybody's text. It ends in command lines, tags and pages, so that only an address that
is understood to its last character goes on from here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

LONGEST_REMOTE = 2000

SCP = "scp"
"""In place of a scheme, for `user@host:path`."""

_URL = re.compile(r"(?i)(https?|ssh|git)://([^/?#\\]*)([^?#]*)([?#].*)?")
_SCP = re.compile(r"(?:([^@:/]*)@)?(\[[^\]@/]+\]|[^@:/\\\[\]]{2,}):(?![:/]{2})(?!:)([^?#]*)([?#].*)?")
_USER = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._~+-]*")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?|\[[0-9A-Fa-f:.]+\]")
_AT_WITHIN_A_NAME = re.compile(r"[^/]@")
_PLAIN_PATH = re.compile(r"[\w.$/{}:\\~ +-]{1,200}")


@dataclass(frozen=True)
class GitAddress:
    """One address that `git fetch` may be given.

    Attributes:
        scheme: https, http, ssh, git or `SCP`.
        user: of ssh, which needs one; never a password, and none where HTTP would carry it.
        host: as it is written.
        port: its digits; empty: the scheme's own.
        path: with its slash, but for `SCP`.
    """

    scheme: str
    user: str
    host: str
    port: str
    path: str

    @classmethod
    def parse(cls, text: str) -> GitAddress:
        """Read https, http, ssh, git or `user@host:path`; passwords, queries and fragments are left out.

        Raises:
            ValueError: it is something else; says why, and shows nothing of it.
        """
        remote = text.strip(" ")
        if not remote.isprintable():
            raise ValueError("it holds characters that cannot be printed")
        if len(remote) > LONGEST_REMOTE:
            raise ValueError(f"it is longer than {LONGEST_REMOTE} characters")
        if remote.startswith("-"):
            raise ValueError("it begins with -, as options of a program do")
        port = ""
        url = _URL.fullmatch(remote)
        scp = None if url else _SCP.fullmatch(remote)
        if url:
            login, _, place = url[2].rpartition("@")
            host, port = _host_and_port(place)
            scheme, path, dropped = url[1].lower(), url[3], url[4] or ""
            user = login.partition(":")[0] if scheme == "ssh" else ""
        elif scp and scp[2].lower() != "file":
            scheme, user, host, path, dropped = SCP, scp[1] or "", scp[2], scp[3], scp[4] or ""
        else:
            raise ValueError("it is none of https://, http://, ssh://, git:// and user@host:path")
        if not _HOST.fullmatch(host) or not re.fullmatch(r"[0-9]{0,5}", port):
            raise ValueError("its host cannot be read")
        if user and not _USER.fullmatch(user):
            raise ValueError("its user cannot be read")
        if not path.strip("/") or path.startswith("-"):
            raise ValueError("it names no repository on its host")
        if _AT_WITHIN_A_NAME.search(path) or "@" in dropped:
            # As behind a password that holds a slash or a hash: what stands before it may be half of one.
            raise ValueError("it holds an @ behind its host")
        if not unquote(path).isprintable():
            raise ValueError("it holds encoded characters that cannot be printed")
        return cls(scheme, user, host, port, path)

    @property
    def host_name(self) -> str:
        """The host, as two spellings of it share it."""
        return self.host.lower().rstrip(".")

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        if self.scheme == SCP:
            return f"{user}{self.host}:{self.path}"
        return f"{self.scheme}://{user}{self.host}{f':{self.port}' if self.port else ''}{self.path}"


def _host_and_port(place: str) -> tuple[str, str]:
    bracket = place.rfind("]") + 1
    host, _, port = place[bracket:].partition(":")
    return place[:bracket] + host, port


def without_credentials(remote: str) -> str:
    """A Git remote for people: without a password, a query or a fragment; words in its place when it cannot be read."""
    try:
        return str(GitAddress.parse(remote))
    except ValueError as error:
        return remote if _PLAIN_PATH.fullmatch(remote) and "://" not in remote else f"(a remote not shown: {error})"


def commit_url(repository: str, commit: str) -> str | None:
    """The web page of a commit; None unless the repository is on one of the hosts whose pages are known.

    Args:
        repository: a Git remote.
        commit: its full or abbreviated hash.
    """
    try:
        remote = GitAddress.parse(repository)
    except ValueError:
        return None
    pages = COMMIT_PAGES.get(remote.host_name)
    path = remote.path.strip("/").removesuffix(".git")
    web_port = not remote.port or (remote.scheme, remote.port) == ("https", "443")
    if pages is None or not path or (remote.scheme in ("http", "https") and not web_port):
        return None
    return f"https://{remote.host_name}/{path}/{pages}/{commit}" if re.fullmatch(r"[0-9a-fA-F]{7,64}", commit) else None


COMMIT_PAGES = {
    "github.com": "commit",
    "gitlab.com": "-/commit",
    "bitbucket.org": "commits",
    "codeberg.org": "commit",
}
"""Host → how the address of a commit's page goes on. A name that only looks like one of these is anybody's."""


def repository_key(remote: str) -> str:
    """What two spellings of one Git remote share: `host/path`, in lower case; "" for what is no address.

    Args:
        remote: a URL, `git@host:path` or an MLflow project URI with `#subdir`.
    """
    try:
        parsed = GitAddress.parse(remote)
    except ValueError:
        return _path_key(remote)
    path = parsed.path.strip("/").removesuffix(".git")
    return f"{parsed.host_name}/{path}".rstrip("/").replace("//", "/").lower()


def _path_key(remote: str) -> str:
    plain = re.sub(r"(?i)^file://", "", remote.partition("#")[0].strip())
    return "" if "://" in plain or "@" in plain else plain.rstrip("/").removesuffix(".git").lower()
