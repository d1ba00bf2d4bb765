"""A served UI, and requests to it as browsers, programs and attackers send them: every header as the test says."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from orchestrator.operate.web.caller import Role
from orchestrator.operate.web.tokens import MachineTokens
from orchestrator.operate.web.users import Users
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.commands import THIS_CHECKOUT, Command, running
from orchestrator_tests.support.dockerfile import PROJECT

TOKEN = "a-token-of-the-ui-for-the-tests-only"
EVIL = "https://evil.example"
PASSWORD = "the password of the tests only"
HTML = ("Accept", "text/html,application/xhtml+xml")
USERS = {"vic": Role.VIEWER, "lou": Role.LAUNCHER, "ada": Role.ADMIN}

FILES = {
    "workspace.yaml": "load_from:\n- python_file: {relative_path: definitions.py, location_name: orchestrator}\n",
    "dagster.yaml": "telemetry: {enabled: false}\nnux: {enabled: false}\n",
    "definitions.py": """
import threading

import dagster as dg

builds = dg.DynamicPartitionsDefinition(name="training_builds")


@dg.asset(key_prefix="training", partitions_def=builds)
def trained_model():
    return None


@dg.sensor(target=trained_model)
def janitor():
    yield dg.SkipReason("nothing to do")


@dg.job
def lasting():
    @dg.op
    def last_until_cancelled():
        threading.Event().wait()

    last_until_cancelled()


defs = dg.Definitions(
    [trained_model, dg.AssetSpec(["training", "jenkins_build"], partitions_def=builds)],
    jobs=[dg.define_asset_job("training_training", [trained_model]), lasting],
    sensors=[janitor],
    executor=dg.in_process_executor,
)
""",
}
REPOSITORY = 'repositoryName:"__repository__",repositoryLocationName:"orchestrator"'


def add_partition(key: str) -> str:
    """A mutation that whoever may change something may send."""
    return (
        f"mutation{{addDynamicPartition(repositorySelector:{{{REPOSITORY}}},"
        f'partitionsDefName:"training_builds",partitionKey:"{key}"){{__typename ... on PythonError{{message}}}}}}'
    )


def launch(key: str) -> str:
    """A mutation that launches the training of one build."""
    return (
        f'mutation{{launchRun(executionParams:{{selector:{{{REPOSITORY},jobName:"training_training"}},'
        f'executionMetadata:{{tags:[{{key:"dagster/partition",value:"{key}"}}]}},runConfigData:"{{}}"}})'
        "{__typename ... on PythonError{message}}}"
    )


@dataclass(frozen=True)
class Answer:
    """Status, headers by name in lower case, and body."""

    status: int
    headers: Mapping[str, str]
    text: str

    def data(self) -> Any:
        return json.loads(self.text)["data"]


@dataclass
class Ui:
    """A UI that listens on loopback.

    Attributes:
        home: its DAGSTER_HOME.
        tokens: role → token of a machine.
    """

    port: int
    home: Path
    command: Command
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def origin(self) -> str:
        return f"http://{self.host}"

    def send(
        self,
        method: str,
        path: str,
        *headers: tuple[str, str],
        body: str | None = None,
        host: str | None = None,
        source: str = "127.0.0.1",
    ) -> Answer:
        """Send exactly these headers, and a Host, from that address."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60, source_address=(source, 0))
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host or self.host)
            for name, value in headers:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body.encode())))
            connection.endheaders(body.encode() if body is not None else None)
            answer = connection.getresponse()
            return Answer(
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read().decode(errors="replace"),
            )
        finally:
            connection.close()

    def raw(self, request: bytes) -> bytes:
        """Send bytes, and return the first line of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(request)
            return connection.recv(1 << 16).split(b"\r\n")[0]

    def graphql(self, query: str, *headers: tuple[str, str], **kwargs: Any) -> Answer:
        """Ask as the UI does: POST of application/json, the operation's name in the address."""
        body = json.dumps({"operationName": None, "variables": {}, "query": query})
        return self.send("POST", "/graphql?op=X", ("Content-Type", "application/json"), *headers, body=body, **kwargs)

    def cookie(self) -> tuple[str, str]:
        """The header of a browser that has opened the address with the token."""
        answer = self.send("GET", f"/?token={quote(TOKEN)}")
        assert answer.status == 303, answer
        return ("Cookie", answer.headers["set-cookie"].partition(";")[0])

    def log_in(self, name: str, password: str = PASSWORD, **kwargs: Any) -> Answer:
        """Send the form of the login page, as a browser does."""
        form = urlencode({"next": "/runs", "username": name, "password": password})
        headers = [("Content-Type", "application/x-www-form-urlencoded"), ("Origin", self.origin), HTML]
        return self.send("POST", "/login", *headers, body=form, **kwargs)

    def session(self, name: str) -> tuple[str, str]:
        """The header of a browser in which that user has logged in."""
        answer = self.log_in(name)
        assert answer.status == 303, answer
        return ("Cookie", answer.headers["set-cookie"].partition(";")[0])

    def bearer(self, role: str = "ui") -> tuple[str, str]:
        return ("Authorization", f"Bearer {TOKEN if role == 'ui' else self.tokens[role]}")

    def partitions(self) -> list[str]:
        """The builds that are registered, asked for by whom nobody refuses."""
        query = '{assetNodeOrError(assetKey:{path:["training","trained_model"]}){... on AssetNode{partitionKeys}}}'
        return list(self.graphql(query, self.bearer()).data()["assetNodeOrError"]["partitionKeys"])


@contextmanager
def served(
    directory: Path,
    *words: str,
    roles: Sequence[str] = (),
    users: Mapping[str, Role] | None = None,
    files: Mapping[str, str] = FILES,
    **settings: str,
) -> Iterator[Ui]:
    """Serve a small project.

    Args:
        directory: a folder for it.
        words: more options of `serve`.
        roles: machine tokens to make.
        users: users to add, with the password of the tests.
        files: the project; none: what `orchestrator serve` serves by itself.
        settings: variables of its environment.
    """
    for name, text in files.items():
        (directory / name).write_text(text)
    home = directory / ".dagster"
    tokens = {role: MachineTokens(home).add(f"of-{role}", Role(role)) for role in roles}
    for name, role in (users or {}).items():
        Users(home / "users.json").add(name, role, PASSWORD)
    environment = {"HOME": str(directory), "PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", **settings}
    port = free_port()
    with running(
        "serve", "--port", str(port), *words, cwd=directory, program=THIS_CHECKOUT, environment=environment
    ) as command:
        command.await_output("Dagster runs on ")
        yield Ui(port, home, command, tokens)
        command.end()
