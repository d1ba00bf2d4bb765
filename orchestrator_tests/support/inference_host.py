"""An inference host: Debian's HAProxy with the configuration of docs/deployment.md, OpenSSH, and clients."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from orchestrator.errors import DeploymentFailed
from orchestrator.resources.targets import HostTarget, InferenceHost, ModelFolder
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.openssh_server import OpenSshServer
from orchestrator_tests.support.releases import model_folder, release
from orchestrator_tests.support.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"

SERVER = """\
import http.server, json, pathlib, sys, time

here = pathlib.Path(__file__).parent
version = (here / "version.txt").read_text()
kind = (here / "kind.txt").read_text() if (here / "kind.txt").exists() else ""
if kind == "crash":
    sys.exit("ImportError: no module named sklearn_of_tomorrow")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(503 if kind == "sick" else 200, {})

    def do_POST(self):
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        time.sleep(0.01)
        if kind == "rejects":
            return self.answer(400, {"error_code": "BAD_REQUEST", "message": "column x is missing"})
        self.answer(200, {"predictions": [version] * (1 if kind == "short" else len(rows))})

    def log_message(self, format, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

print("serving version", version, flush=True)
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def haproxy_config() -> str:
    """What docs/deployment.md tells people to copy."""
    return PAGE.read_text().split("```haproxy\n")[1].split("```")[0]


class HAProxyHost:
    """HAProxy in front of two slots, reached over SSH as a deployment reaches it.

    Attributes:
        port: where clients ask.
        slots: ports of the two slots.
        base: where the host keeps what is deployed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.base = directory / "serving"
        self.port, *self.slots = (free_port() for _ in range(3))
        self._socket = directory / "admin.sock"
        self.sshd = OpenSshServer(directory)

    def __enter__(self) -> Self:
        config = haproxy_config().replace("/run/haproxy/admin.sock group haproxy", str(self._socket))
        config = config.replace("bind :8080", f"bind 127.0.0.1:{self.port}")
        for number, port in zip((8081, 8082), self.slots, strict=True):
            config = config.replace(f"127.0.0.1:{number}", f"127.0.0.1:{port}")
        (self.directory / "haproxy.cfg").write_text(config)
        self.sshd.__enter__()
        self.start_haproxy()
        return self

    def __exit__(self, *_: object) -> None:
        for noted in self.base.glob("slots/*/keeper.json"):
            if psutil.pid_exists(pid := json.loads(noted.read_text())["pid"]):
                process = psutil.Process(pid)
                process.terminate()
                process.wait(60)
        self.stop_haproxy()
        self.sshd.__exit__()

    def start_haproxy(self) -> None:
        program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/sbin") or "haproxy"
        self._log = (self.directory / "haproxy.log").open("ab")
        # pytest-xdist's workers ignore SIGTERM, and HAProxy's would do as they do.
        command = ["env", "--default-signal", program, "-W", "-db", "-f", str(self.directory / "haproxy.cfg")]
        self._haproxy = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        until(self._socket.exists)
        until(lambda: self.asked("GET", "/")[0] > 0)

    def stop_haproxy(self) -> None:
        self._haproxy.terminate()
        self._haproxy.wait(60)
        self._log.close()
        self._socket.unlink(missing_ok=True)

    def spec(self, **changes: Any) -> InferenceHost:
        """What a defs.yaml says of this host."""
        values = {
            "address": "127.0.0.1",
            "user": self.sshd.user,
            "port": self.sshd.port,
            "host_key": (self.sshd.directory / "host_ed25519.pub").read_text().strip(),
            "key_path": self.sshd.keys["ed25519"],
            "admin_socket": str(self._socket),
            "backend": "churn",
            "directory": str(self.base),
            "serve": f"{sys.executable} {{model}}/serve.py {{port}}",
            "start_seconds": 60,
            "drain_seconds": 60,
        }
        return InferenceHost(**{**values, **changes})

    def target(self, **changes: Any) -> HostTarget:
        return HostTarget(self.spec(**changes))

    def asked(self, method: str = "POST", path: str = "/invocations") -> tuple[int, str]:
        """Status, and the version that has predicted."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, json.dumps({"inputs": [[1.0], [2.0]]}), headers)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, json.loads(body)["predictions"][
                0
            ] if method == "POST" and answer.status == 200 else ""
        finally:
            connection.close()

    def listening(self) -> list[int]:
        """The slots' ports that a server listens on."""
        found = [connection.laddr for connection in psutil.net_connections("tcp") if connection.status == "LISTEN"]
        return [port for port in self.slots if any(address and address.port == port for address in found)]


def served_model(directory: Path, version: int, *, kind: str = "") -> ModelFolder:
    """A model with a server of its own.

    Args:
        directory: in which its folder is made.
        version: which it predicts.
        kind: how it fails: `crash`, `sick`, `rejects` or `short`; empty: it does not.
    """
    return model_folder(directory, version, **{"serve.py": SERVER, **({"kind.txt": kind} if kind else {})})


class Clients:
    """Threads that ask for predictions, and count the answers.

    Args:
        host: whom they ask.
        count: how many there are.
        pause: of each one, in seconds, after an answer.
    """

    def __init__(self, host: HAProxyHost, count: int, *, pause: float = 0) -> None:
        self.answers: Counter[tuple[int, str] | str] = Counter()
        self._host = host
        self._pause = pause
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def await_answers(self, number: int) -> None:
        """Wait for so many more answers."""
        wanted = self.answers.total() + number
        until(lambda: self.answers.total() >= wanted, seconds=120)

    def _ask(self) -> None:
        while not self._ended.wait(self._pause):
            try:
                answer: tuple[int, str] | str = self._host.asked()
            except (OSError, http.client.HTTPException) as error:
                answer = repr(error)
            with self._lock:
                self.answers[answer] += 1


def switched_under_load(host: HAProxyHost, tmp_path: Path, *, switches: int, bad: set[int], clients: int) -> None:
    """Deploy version after version while clients ask; those in `bad` do not predict."""
    target = host.target()
    target.deploy(release(1), served_model(tmp_path, 1))
    in_use = 1
    with Clients(host, clients) as load:
        load.await_answers(clients)
        for version in range(2, 2 + switches):
            kind = "rejects" if version in bad else ""
            model = served_model(tmp_path, version, kind=kind)
            if kind:
                with pytest.raises(DeploymentFailed, match="column x is missing"):
                    target.deploy(release(version), model)
            else:
                before = target.deploy(release(version), model)
                assert before is not None
                assert before.version == str(in_use)
                in_use = version
            found = target.state()
            assert found is not None
            assert found.version == str(in_use)
            load.await_answers(3 * clients)
            assert len(host.listening()) == 1
    good = {(200, str(version)) for version in range(1, 2 + switches) if version not in bad}
    assert set(load.answers) == good, f"failed requests: {load.answers}"
