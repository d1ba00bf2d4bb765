"""Git servers that hand out less than `git daemon` does, and HTTP servers that fail; for tests of remote/."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from orchestrator_sandbox.git import git

SSH = """#!/bin/sh
# as `ssh` to a host whose sshd accepts no GIT_PROTOCOL, so that Git speaks its oldest protocol
case " $* " in *" -G "*) exit 1 ;; esac
unset GIT_PROTOCOL
for command; do :; done
exec sh -c "$command"
"""


def old_ssh(directory: Path) -> str:
    """GIT_SSH_COMMAND of a server that hands out branch tips only."""
    program = directory / "old-ssh"
    program.write_text(SSH)
    program.chmod(0o755)
    return str(program)


@contextmanager
def served(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """An HTTP server on loopback; yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def dumb_http(repository: Path) -> Iterator[str]:
    """A web server that knows nothing of Git, and hands out a bare repository's files; yields its address there."""
    git("update-server-info", cwd=repository)
    with served(partial(Quiet, directory=str(repository.parent))) as url:
        yield f"{url}/{repository.name}"


class Quiet(SimpleHTTPRequestHandler):
    """Hands out files, and logs nothing."""

    def log_message(self, *_: object) -> None: ...


class Answering(BaseHTTPRequestHandler):
    """Answers everything in one way, and counts.

    Attributes:
        status: of the first answers.
        body: of these.
        times: how many; None: all.
        then: where all further requests are sent to.
        asked: paths, so far.
    """

    status = 401
    body = b""
    times: int | None = None
    then = ""
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.times is None or len(self.asked) <= self.times:
            self.send_response(self.status)
            if self.status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="here"')
        else:
            self.send_response(307)
            self.send_header("Location", self.then + self.path)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET  # noqa: N815 - as http.server calls it

    def log_message(self, *_: object) -> None: ...


def answering(**attributes: Any) -> type[Answering]:
    """A handler of these attributes."""
    return type("ThisAnswering", (Answering,), {"asked": [], **attributes})
