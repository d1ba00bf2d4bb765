"""A login that a package index rejects is told from an index that cannot be asked from here."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.resources.package_index import rejected_login
from orchestrator_sandbox.processes.child import free_port

LOGIN = f"Basic {base64.b64encode(b'reader:right').decode()}"


@contextmanager
def index(*, right: int, wrong: int, anonymous: int) -> Iterator[str]:
    """A server that answers so, by the login that it is shown."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown = self.headers.get("Authorization")
            self.send_response(anonymous if shown is None else right if shown == LOGIN else wrong)
            self.send_header("Location", "http://127.0.0.1:1/login")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("right", [200, 301, 404, 500])
@pytest.mark.parametrize(("wrong", "anonymous"), [(401, 401), (403, 401)])
def test_a_rejected_login_is_told_from_one_that_is_taken(right: int, wrong: int, anonymous: int) -> None:
    with index(right=right, wrong=wrong, anonymous=anonymous) as url:
        assert rejected_login(url, user="reader", password="wrong") == wrong
        assert rejected_login(url, user="reader", password="right") is None


def test_who_answers_403_to_everybody_here_says_nothing_of_the_login() -> None:
    with index(right=403, wrong=403, anonymous=403) as url:
        assert rejected_login(url, user="reader", password="right") is None


def test_a_netrc_file_of_ours_is_not_shown_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login reader password right\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with index(right=200, wrong=403, anonymous=401) as url:
        assert rejected_login(url, user="reader", password="wrong") == 403


def test_an_index_that_cannot_be_reached_from_here_rejects_nothing() -> None:
    assert rejected_login(f"http://127.0.0.1:{free_port()}/simple", user="reader", password="wrong") is None
