"""A hostile web page beside the operator's UI, in one real Chromium; for operate/test_hostile_page."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from orchestrator_sandbox.web import HandlerServer

LIBRARY = Path(__file__).with_suffix(".js").read_text()
EVIL = "evil.example"
REBOUND = "rebound.example"
SCRIPT_SECONDS = 280
"""An attack tries dozens of ways, each of which gives up after seconds."""

Loot = list[list[str]]


class HostileSite:
    """A web server on loopback that is open to every page, and remembers what browsers send it.

    Attributes:
        port: where it listens.
        received: the headers of each request, and its `path` and `body`.
    """

    def __init__(self) -> None:
        self.received: list[Mapping[str, str]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
                site.received.append(dict(self.headers.items()) | {"path": self.path, "body": body})
                page = b"<!doctype html><title>Free coffee</title><body></body>"
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.send_header("Access-Control-Allow-Origin", self.headers.get("Origin", "*"))
                self.send_header("Access-Control-Allow-Credentials", "true")
                self.send_header("Access-Control-Allow-Headers", "content-type")
                self.send_header("Access-Control-Allow-Methods", "PUT")
                self.end_headers()
                self.wfile.write(page)

            do_POST = do_PUT = do_OPTIONS = do_GET  # noqa: N815 - http.server's names

            def log_message(self, format: str, *args: Any) -> None:
                """Requests are not worth a line each."""

        self._server = HandlerServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclass(frozen=True)
class Attack:
    """A call of hostile_page.js.

    Attributes:
        function: its name.
        arguments: its arguments, as JSON.
    """

    function: str
    arguments: Sequence[object]

    @property
    def call(self) -> str:
        """As JavaScript."""
        return f"{self.function}({', '.join(json.dumps(argument) for argument in self.arguments)})"


@dataclass
class Browser:
    """A Chromium without a window, in which the operator works and a hostile page is open.

    Attributes:
        driver: drives it.
        ui: the window of the operator's UI.
        page: the window of the hostile page.
    """

    driver: webdriver.Chrome
    ui: str = ""
    page: str = ""
    errors: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, profile: Path) -> Self:
        """Start it with a profile of its own; names that end in .example lead to this computer."""
        options = Options()
        options.binary_location = "/usr/bin/chromium"
        for argument in (
            "--headless=new",
            "--window-size=1600,1200",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            f"--user-data-dir={profile}",
            f"--host-resolver-rules=MAP {EVIL} 127.0.0.1,MAP {REBOUND} 127.0.0.1",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        driver.set_script_timeout(SCRIPT_SECONDS)
        driver.set_page_load_timeout(60)
        return cls(driver)

    def open_ui(self, url: str) -> None:
        """Open the UI as the operator does, by the address that was printed."""
        self.ui = self.driver.current_window_handle
        self.driver.get(url)

    def open_page(self, url: str) -> None:
        """Open the hostile page in a fresh window, and close all but that and the UI."""
        self.driver.switch_to.window(self.ui)
        self.driver.switch_to.new_window("tab")
        self.page = self.driver.current_window_handle
        self.close_others()
        self.driver.get(url)

    def close_others(self) -> None:
        """Close what was opened by pages."""
        for handle in self.driver.window_handles:
            if handle not in (self.ui, self.page):
                self.driver.switch_to.window(handle)
                self.driver.close()
        self.driver.switch_to.window(self.page)

    def attack(self, attack: Attack, *, from_nowhere: bool = False) -> Loot:
        """Let the page in the current window try everything; return what it could read."""
        call = f"fromNowhere({json.dumps(LIBRARY)}, {json.dumps(attack.call)})" if from_nowhere else attack.call
        loot: Loot = self.driver.execute_async_script(
            f"const done = arguments[arguments.length - 1];\n{LIBRARY}\n"
            f"{call}.then(done, (error) => done([['broken', String(error)]]));"
        )
        self.close_others()
        return loot

    def submit_in_place(self, action: str, options: Mapping[str, object]) -> None:
        """Let the page replace itself by what a form gets as its answer: a top-level request."""
        self.driver.execute_script(f"{LIBRARY}\nform({json.dumps(action)}, {json.dumps(options)});")

    def graphql(self, query: str) -> dict[str, Any]:
        """Ask the UI's server from within the UI, as the UI itself does."""
        self.driver.switch_to.window(self.ui)
        answer: dict[str, Any] = self.driver.execute_async_script(
            "const done = arguments[1]; fetch('/graphql?op=Test', {method: 'POST', headers: {'Content-Type': "
            "'application/json'}, body: JSON.stringify({query: arguments[0]})}).then((a) => a.json()).then(done, "
            "(e) => done({refused: String(e)}));",
            query,
        )
        return answer

    def console_errors(self) -> list[str]:
        """What the browser's console has shown in red since the last call."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] == "SEVERE"]

    def socket_frames(self) -> list[str]:
        """What WebSockets have brought to the current window since the last call."""
        frames = []
        for entry in self._log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.webSocketFrameReceived":
                frames.append(str(message["params"]["response"]["payloadData"]))
        return frames

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return entries
