"""The Jenkins client, over real HTTP: every shape of answer, and every way to say no."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from orchestrator.errors import (
    JenkinsBadAnswer,
    JenkinsError,
    JenkinsNotFound,
    JenkinsRefused,
    JenkinsTooLarge,
    JenkinsUnavailable,
    SettingsError,
)
from orchestrator.pipeline.builds.cursor import Cursor
from orchestrator.pipeline.builds.discovery import discover
from orchestrator.pipeline.builds.reading import Limits
from orchestrator.resources import retry
from orchestrator.resources.jenkins import (
    Build,
    BuildPage,
    Jenkins,
    JenkinsResource,
    JobKind,
    JobOverview,
    UnreadableBuild,
)
from orchestrator.resources.jenkins.answers import build_of, build_summary_of, job_summary_of, overview_of
from orchestrator.resources.jenkins.checkout import branch_name
from orchestrator.resources.jenkins.remotes import repository_key, without_credentials
from orchestrator.resources.retry import RetryPolicy
from orchestrator.settings.groups import JenkinsSettings
from orchestrator.settings.source import SettingsSource
from orchestrator_sandbox.web import HandlerServer
from orchestrator_tests.support.jenkins_model import COMMIT, REMOTE, Job, Model, build_json, served
from orchestrator_tests.support.raw_http import RawServer, raw_server

SHORT = RetryPolicy(
    total_seconds=30,
    connect_seconds=5,
    answer_seconds=10,
    first_pause_seconds=0.01,
    longest_pause_seconds=0.01,
    max_attempts=4,
)
TRICKLES = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
SHA = "a" * 40
OTHER = "b" * 40


@dataclass
class Reply:
    """One answer of the stub."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False


@dataclass
class Stub:
    """A server that says what the test wants; the last answer is repeated."""

    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    asked: list[tuple[str, str, dict[str, str], str]] = field(default_factory=list)

    def say(self, *replies: Reply | object) -> None:
        self.replies = [
            reply if isinstance(reply, Reply) else Reply(body=json.dumps(reply).encode()) for reply in replies
        ]


@contextmanager
def stub_server(context: ssl.SSLContext | None = None) -> Iterator[Stub]:
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            stub.asked.append((self.command, self.path, dict(self.headers), sent))
            reply = stub.replies.pop(0) if len(stub.replies) > 1 else stub.replies[0]
            if reply.hang_up:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = answer  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: Any) -> None:
            """Tests keep their output clean."""

    server = HandlerServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    stub.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}"
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as stub:
        yield stub


def of(url: str, *, job: str = "team/churn", **more: Any) -> JenkinsSettings:
    return JenkinsSettings(url=url, user="ci", token=SecretStr("s3cret"), job=job, **more)


@pytest.fixture
def jenkins(stub: Stub) -> Iterator[Jenkins]:
    with Jenkins(of(f"{stub.url}/ci"), policy=SHORT) as jenkins:
        yield jenkins


def a_build(*actions: object, **fields: object) -> dict[str, object]:
    return {
        "number": 7,
        "timestamp": 1,
        "building": False,
        "result": "SUCCESS",
        "duration": 5,
        "actions": list(actions),
        **fields,
    }


def git(sha: str, remote: str, branch: str = "refs/remotes/origin/main", name: str = "") -> dict[str, object]:
    return {
        "_class": "hudson.plugins.git.util.BuildData",
        "lastBuiltRevision": {"SHA1": sha, "branch": [{"SHA1": sha, "name": branch}]},
        "remoteUrls": [remote],
        "scmName": name,
    }


def read(data: object, *, job: str = "team/churn", project: str | None = None, keep: Sequence[str] = ()) -> Build:
    return build_of(data, job=job, url="http://j/7/", project=project, where="http://j/", keep=keep)


# --- asking ---------------------------------------------------------------------------------------------


def test_a_build_is_read_with_one_tree_request_and_basic_auth(stub: Stub, jenkins: Jenkins) -> None:
    stub.say(a_build(git(SHA, "https://github.com/acme/churn.git"), url="https://ci.example.com/job/x/7/"))
    assert jenkins.build("team/churn", 7) == Build(
        7,
        1,
        "SUCCESS",
        "team/churn",
        5,
        "https://ci.example.com/job/x/7/",
        SHA,
        "main",
        "https://github.com/acme/churn.git",
    )
    ((method, path, headers, _),) = stub.asked
    assert method == "GET"
    assert path.startswith("/ci/job/team/job/churn/7/api/json?tree=number%2C")
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"ci:s3cret").decode()


def test_branches_with_slashes_are_encoded_twice(stub: Stub, jenkins: Jenkins) -> None:
    stub.say(a_build())
    jenkins.build("team/churn/feature%2Fx", 7)
    assert stub.asked[0][1].startswith("/ci/job/team/job/churn/job/feature%252Fx/7/api/json")


@pytest.mark.parametrize(("field", "start", "stop"), [("builds", 40, 90), ("allBuilds", 51, 101)])
def test_a_page_of_builds_is_asked_for_by_range(
    stub: Stub, jenkins: Jenkins, field: str, start: int, stop: int
) -> None:
    stub.say({field: [a_build(number=9), a_build(number=8)]})
    assert [build.number for build in jenkins.builds("team/churn", start=start, stop=stop).builds] == [9, 8]
    tree = parse_qs(stub.asked[0][1].partition("?")[2])["tree"][0]
    assert tree.startswith(f"{field}[number,")
    assert tree.endswith(f"{{{start},{stop}}}")
    assert len(stub.asked) == 1


def test_one_request_serves_plain_and_multibranch_jobs(stub: Stub, jenkins: Jenkins) -> None:
    stub.say({"nextBuildNumber": 8, "allBuilds": [a_build()]})
    (head,) = jenkins.overview("team/churn", newest=20).jobs
    assert (head.job, head.next_number, head.newest[0].number, head.whole) == ("team/churn", 8, 7, True)
    branch = {"nextBuildNumber": 9, "allBuilds": [a_build(number=8, building=True, result=None), a_build()]}
    stub.say({"jobs": [{"name": "main", **branch}, {"name": "feature%2Fx", **branch}, {"name": "a folder"}]})
    heads = jenkins.overview("team/churn", newest=20).jobs
    assert [head.job for head in heads] == ["team/churn/main", "team/churn/feature%2Fx"]
    assert [build.finished for build in heads[0].newest] == [False, True]
    assert not heads[0].whole
    stub.say({"jobs": []})
    assert jenkins.overview("team/churn", newest=20).jobs == ()


FREESTYLE = {"_class": "hudson.model.FreeStyleProject", "name": "deploy-prod", "allBuilds": [], "nextBuildNumber": 1}
SUBFOLDER = {"_class": "com.cloudbees.hudson.plugins.folder.Folder", "name": "sub"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"jobs": [{"name": "churn"}]}, r"a folder without .*set JENKINS_JOB_NAME to one in it \(team/churn\)"),
        (
            {"_class": "com.cloudbees.hudson.plugins.folder.Folder", "jobs": [FREESTYLE, SUBFOLDER]},
            r"job/team/ is a folder, .*set JENKINS_JOB_NAME to one in it "
            r"\(team/deploy-prod, team/sub \(a folder\)\)",
        ),
        (
            {"_class": "jenkins.branch.OrganizationFolder", "jobs": [{"name": "churn"}, {"name": "fraud"}]},
            r"an organization folder.*\(team/churn, team/fraud\)",
        ),
        ({"_class": "com.cloudbees.hudson.plugins.folder.Folder", "jobs": []}, r"a folder.*\(it is empty\)"),
        (
            {"_class": "com.cloudbees.hudson.plugins.folder.Folder", "jobs": [{"name": f"j{n}"} for n in range(99)]},
            r"team/j19, and 79 more\)",
        ),
        ({"_class": "com.example.Something", "jobs": [FREESTYLE]}, "is Something, .*team/deploy-prod"),
    ],
)
def test_a_folder_is_refused_with_the_names_of_its_jobs(
    stub: Stub, jenkins: Jenkins, answer: object, words: str
) -> None:
    stub.say(answer)
    with pytest.raises(JenkinsBadAnswer, match=words):
        jenkins.overview("team", newest=1)


@pytest.mark.parametrize(
    "kind",
    [
        "org.jenkinsci.plugins.workflow.multibranch.WorkflowMultiBranchProject",
        "com.github.mjdetullio.jenkins.plugins.multibranch.FreeStyleMultiBranchProject",
    ],
)
def test_a_multibranch_project_tells_its_primary_branch_and_its_change_requests(
    stub: Stub, jenkins: Jenkins, kind: str
) -> None:
    marker = "jenkins.scm.api.metadata."
    some = {"nextBuildNumber": 1, "allBuilds": []}
    main = {"name": "main", "actions": [{}, {"_class": f"{marker}PrimaryInstanceMetadataAction"}], **some}
    request = {"name": "PR-4", "actions": [{"_class": f"{marker}ContributorMetadataAction"}, None, 5], **some}
    source = {"_class": f"{marker}ObjectMetadataAction", "objectUrl": "https://github.com/acme/churn"}
    odd = {"name": "odd", "actions": 5, **some}
    stub.say({"_class": kind, "actions": [{}, source], "jobs": [main, request, odd]})
    overview = jenkins.overview("team/churn", newest=20)
    assert (overview.kind, overview.remote) == (JobKind.MULTIBRANCH, "https://github.com/acme/churn")
    assert [(job.job, job.primary, job.change_request) for job in overview.jobs] == [
        ("team/churn/main", True, False),
        ("team/churn/PR-4", False, True),
        ("team/churn/odd", False, False),
    ]
    tree = parse_qs(stub.asked[0][1].partition("?")[2])["tree"][0]
    brief = "[number,timestamp,building,result]"
    assert tree == (
        f"nextBuildNumber,lastBuild{brief},builds{brief}{{0,20}},actions[objectUrl],"
        f"jobs[name,actions[_class],nextBuildNumber,lastBuild{brief}]"
    )
    jenkins.overview("team/churn", newest=0)
    tree = parse_qs(stub.asked[1][1].partition("?")[2])["tree"][0]
    assert tree == "nextBuildNumber,actions[objectUrl],jobs[name,actions[_class],nextBuildNumber]"


def test_the_repository_that_is_set_counts_more_than_what_jenkins_says(stub: Stub) -> None:
    stub.say({"_class": "multibranch", "actions": [{"objectUrl": "https://github.com/acme/churn"}], "jobs": []})
    for project, remote in (("https://git/x#sub", "https://git/x#sub"), ("#sub", "https://github.com/acme/churn")):
        with Jenkins(of(stub.url), project=project) as jenkins:
            assert jenkins.overview("team/churn", newest=20).remote == remote


@pytest.mark.parametrize("url", ["jenkins.example.com", "ftp://jenkins", "https://"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match="JENKINS_URL"):
        Jenkins(of(url))


def test_the_resource_connects_with_the_settings_of_a_pipeline() -> None:
    values = {
        "JENKINS_URL": "https://user:pw@ci.example.com/jenkins",
        "JENKINS_USER": "ci",
        "JENKINS_TOKEN": "t",
        "JENKINS_JOB_NAME": "job/team/job/churn",
    }
    with JenkinsResource().connect(SettingsSource(lookup=values.get).read(JenkinsSettings), project=None) as jenkins:
        assert (jenkins.url, jenkins.job) == ("https://ci.example.com/jenkins/", "team/churn")


# --- saying no ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(401), JenkinsRefused, "401 from .*: JENKINS_USER/JENKINS_TOKEN rejected"),
        (Reply(403), JenkinsRefused, "403 from .*'ci' may not .*Job/Read"),
        (Reply(404), JenkinsNotFound, "404 from .*hides.*JENKINS_JOB_NAME"),
        (Reply(400), JenkinsBadAnswer, "400 from"),
        (Reply(302, headers={"Location": "/login?from=%2Fci"}), JenkinsRefused, "login page, http://.*/login:"),
        (Reply(302, headers={"Location": "https://127.0.0.1/ci/"}), JenkinsBadAnswer, "JENKINS_URL to the https"),
        (Reply(301, headers={"Location": "/jenkins/"}), JenkinsBadAnswer, "set JENKINS_URL to the address"),
        (Reply(body=b'<html><input name="j_username">'), JenkinsRefused, "login page"),
        (Reply(body=b"[1]"), JenkinsBadAnswer, "JSON of another shape"),
    ],
)  # fmt: skip
def test_what_cannot_get_better_is_explained_and_not_repeated(
    stub: Stub, jenkins: Jenkins, reply: Reply, kind: type[JenkinsError], words: str
) -> None:
    stub.say(reply)
    with pytest.raises(kind, match=words) as raised:
        jenkins.builds("team/churn", start=0, stop=1)
    assert len(stub.asked) == 1
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(503), JenkinsUnavailable, "503 from .*overloaded, starting or down"),
        (Reply(hang_up=True), JenkinsUnavailable, "no connection to .*JENKINS_URL"),
        (Reply(body=b"<!DOCTYPE html><p>Hi"), JenkinsUnavailable, "a web page .HTML. where a JSON"),
        (Reply(body=b'{"allBuilds": [{"number"'), JenkinsBadAnswer, "broken JSON"),
        (Reply(body=b""), JenkinsBadAnswer, "with nothing where"),
    ],
)
def test_what_may_get_better_is_explained_when_it_does_not(
    stub: Stub, jenkins: Jenkins, reply: Reply, kind: type[JenkinsError], words: str
) -> None:
    stub.say(reply)
    with pytest.raises(kind, match=words):
        jenkins.builds("team/churn", start=0, stop=1)
    assert len(stub.asked) == SHORT.max_attempts


def test_no_server_at_all_is_explained() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with (
            Jenkins(of(address), policy=SHORT) as jenkins,
            pytest.raises(JenkinsUnavailable, match=r"Connection refused.*JENKINS_URL"),
        ):
            jenkins.build("team/churn", 1)


@pytest.mark.parametrize(
    ("begun", "words"), [([], "no answer from .* in time"), ([TRICKLES], "no whole answer from .* in time")]
)
def test_a_server_that_says_nothing_more_is_left(begun: list[bytes], words: str) -> None:
    policy = RetryPolicy(total_seconds=0, connect_seconds=5, answer_seconds=0.1)
    with (
        raw_server(*begun, then=b" ") as server,
        Jenkins(of(server.url), policy=policy) as jenkins,
        pytest.raises(JenkinsUnavailable, match=words),
    ):
        jenkins.build("team/churn", 1)


def test_a_server_that_speaks_no_http_is_explained() -> None:
    with (
        raw_server(b"SSH-2.0-OpenSSH_9.6\r\n") as server,
        Jenkins(of(server.url), policy=SHORT) as jenkins,
        pytest.raises(JenkinsError, match="JENKINS_URL"),
    ):
        jenkins.build("team/churn", 1)


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "jenkins")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "jenkins.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls_stub(certificate: Path) -> Iterator[Stub]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with stub_server(context) as stub:
        yield stub


def test_a_private_certificate_is_refused_with_the_setting_to_change(tls_stub: Stub) -> None:
    tls_stub.say(a_build())
    with Jenkins(of(tls_stub.url)) as jenkins, pytest.raises(JenkinsUnavailable, match="JENKINS_CA_BUNDLE"):
        jenkins.build("team/churn", 7)
    assert tls_stub.asked == []


def test_a_private_certificate_is_accepted_with_its_ca(
    tls_stub: Stub, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    tls_stub.say(a_build())
    with Jenkins(of(tls_stub.url, ca_bundle=certificate)) as jenkins:
        assert jenkins.build("team/churn", 7).number == 7


def test_a_ca_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="JENKINS_CA_BUNDLE: there is no file"):
        Jenkins(of("https://ci.example.com", ca_bundle=tmp_path / "none.pem"))


# --- reading --------------------------------------------------------------------------------------------


def test_a_build_without_git_has_no_commit() -> None:
    build = read(a_build({}, None, {"_class": "hudson.model.CauseAction"}, {"parameters": []}))
    assert (build.commit, build.branch, build.repository, build.url) == (None, None, None, "http://j/7/")
    assert read(a_build(actions=None)).commit is None


def test_a_checkout_that_failed_has_no_commit() -> None:
    assert read(a_build({"lastBuiltRevision": None, "remoteUrls": ["https://x/y"]})).commit is None
    assert read(a_build({"lastBuiltRevision": {"SHA1": "not a hash"}})).commit is None


LIBRARY = git(OTHER, "https://github.com/acme/jenkins-library.git", "main")
PROJECT = git(SHA, "git@github.com:acme/Churn-Model.git")


@pytest.mark.parametrize(
    ("actions", "job", "project"),
    [
        pytest.param([LIBRARY, PROJECT], "train", None, id="the library comes first, as usual"),
        pytest.param([PROJECT, LIBRARY], "train", None, id="the library is called a library"),
        pytest.param(
            [PROJECT, git(OTHER, "https://x/groovy")], "team/churn-model/main", None, id="called like the job"
        ),
        pytest.param(
            [PROJECT, git(OTHER, "https://x/groovy")],
            "train",
            "https://github.com/acme/churn-model#training",
            id="MLPROJECT_URI names it",
        ),
        pytest.param([PROJECT, git(OTHER, "https://x/groovy", name="shared")], "train", None, id="no SCM name"),
        pytest.param(
            [{"revision": {"hash": SHA}}, PROJECT, git(OTHER, "https://x/groovy")], "train", None, id="SCM revision"
        ),
        pytest.param([git(OTHER, "git@github.com:acme/churn-model"), PROJECT], "train", None, id="moved on"),
        pytest.param([{"revision": {"pullHash": SHA.upper()}}], "train", None, id="an SCM revision and no checkout"),
    ],
)
def test_the_projects_own_commit_is_found_among_several(actions: list[object], job: str, project: str | None) -> None:
    assert read(a_build(*actions), job=job, project=project).commit == SHA


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        ("refs/remotes/origin/main", "main"),
        ("refs/remotes/upstream/feature/x", "feature/x"),
        ("origin/main", "main"),
        ("refs/heads/main", "main"),
        ("feature/x", "feature/x"),
        ("detached", None),
        ("", None),
        (7, None),
    ],
)
def test_branches_lose_their_remote(name: object, branch: str | None) -> None:
    assert branch_name(name) == branch


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/acme/churn.git",
        "https://user:token@github.com/Acme/churn/",
        "git@github.com:acme/churn.git",
        "ssh://git@github.com:22/acme/churn",
        "https://github.com/acme/churn#sub/dir",
    ],
)
def test_spellings_of_one_repository_agree(remote: str) -> None:
    assert repository_key(remote) == "github.com/acme/churn"


def test_a_remote_loses_its_credentials() -> None:
    assert without_credentials("https://me:token@github.com/a/b") == "https://github.com/a/b"
    assert without_credentials("git@github.com:a/b") == "git@github.com:a/b"


def test_parameters_are_text_and_hidden_ones_left_out() -> None:
    parameters = [
        {"name": "fast", "value": True},
        {"name": "alpha", "value": 0.5},
        {"name": "text", "value": "a b"},
        {"name": "password"},
        {"name": "credentials", "value": None},
        "odd",
    ]
    build = read(a_build({"parameters": parameters}), keep=["*"])
    assert build.parameters == {"fast": "true", "alpha": "0.5", "text": "a b"}


def test_only_parameters_that_a_setting_names_are_kept() -> None:
    values = {"DEPLOY_TOKEN": "s3cret", "EPOCHS": "3", "DATA_DAY": "1", "DATA_LONG": "x" * 5000, "DATA_ESC": "\x1b[2J"}
    action = {"parameters": [{"name": name, "value": value} for name, value in values.items()]}
    assert read(a_build(action)).parameters == {}
    assert read(a_build(action), keep=["EPOCHS", "DATA_*"]).parameters == {"EPOCHS": "3", "DATA_DAY": "1"}


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "%1B%5B2J", "\u202ex", "..", "."])
def test_a_branch_job_whose_name_cannot_be_printed_costs_that_branch(name: str) -> None:
    branch = {"nextBuildNumber": 9, "allBuilds": [a_build()]}
    found = overview({"jobs": [{"name": name, **branch}, {"name": "main", **branch}]})
    assert [job.job for job in found.jobs] == ["team/churn/main"]
    assert len(found.faults) == 1
    assert found.faults[0].isprintable()


def test_a_result_that_may_still_change_counts_as_running() -> None:
    build = read(a_build(building=True, result="SUCCESS"))
    assert not build.finished
    assert not build.succeeded()


def test_a_build_survives_being_recorded() -> None:
    build = read(a_build(PROJECT, {"parameters": [{"name": "a", "value": 1}]}))
    assert Build.from_json(json.loads(json.dumps(build.to_json()))) == build
    with pytest.raises(ValueError, match="number"):
        Build.from_json({"number": "?"})


@pytest.mark.parametrize(
    "answer",
    [
        {"allBuilds": None},
        {"allBuilds": {}},
        {"jobs": "none"},
        {"allBuilds": [{}]},
        {"allBuilds": ["x"]},
        {"allBuilds": [{"number": True, "timestamp": 1}]},
    ],
)
def test_json_of_another_shape_is_a_bad_answer(stub: Stub, jenkins: Jenkins, answer: object) -> None:
    stub.say(answer)
    with pytest.raises(JenkinsBadAnswer, match="JENKINS_URL"):
        jenkins.overview("team/churn", newest=20)


def test_what_is_wrong_with_one_build_costs_that_build(stub: Stub, jenkins: Jenkins) -> None:
    wrong = {
        99: a_build(number=99, timestamp="today"),
        98: a_build(number=98, timestamp=None),
        97: a_build(number=97, timestamp=9 * 10**18),
        96: a_build(number=96, result=1),
        95: a_build(number=95, timestamp=-1),
        94: a_build(number=94, timestamp=float("nan")),
        93: a_build(number=93, timestamp=1e999),
        92: a_build(number=92, timestamp=True),
        91: a_build(number=91, timestamp=7.0),
    }
    nameless: list[object] = [None, 5, [], "x", {}, a_build(number=10**30), a_build(number=-1), a_build(number="8")]
    odd = a_build(number=7, duration="long", url=5, actions=5)
    good = [a_build(number=8), a_build(number=8, result="FAILURE"), odd, a_build(number=6, actions=None)]
    for order in (1, -1):
        stub.say({"allBuilds": [*wrong.values(), *nameless, *good][::order], "nextBuildNumber": "?"})
        page = jenkins.builds("team/churn", start=0, stop=21)
        assert [build.number for build in page.builds] == [*range(99, 90, -1), 8, 7, 6]
        assert all(isinstance(build, UnreadableBuild) == (build.number > 8) for build in page.builds)
        assert page.whole
        assert len(page.faults) == len(nameless)
        (summary,) = jenkins.overview("team/churn", newest=99).jobs
        assert [build.number for build in summary.newest] == [*range(99, 90, -1), 8, 7, 6]
        assert (summary.next_number, summary.whole) == (None, True)


@pytest.mark.parametrize("kind", ["too large", "nested too deep"])
def test_a_page_that_cannot_be_read_is_read_in_halves(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("orchestrator.resources.jenkins.client.PAGE_BYTES", 20_000)
    monkeypatch.setattr("orchestrator.resources.jenkins.client.LARGEST_ANSWER", 20_000)
    model = Model(jobs={"team/churn": Job()})
    for _ in range(20):
        model.add()
    for number in (3, 4, 20):
        build = model.jobs[model.job].builds[number]
        odd = "x" * 30_000 if kind == "too large" else "nested"
        model.jobs[model.job].builds[number] = replace(build, parameters={"alpha": odd})
    model.rewrite = lambda body: body.replace(b'"nested"', b"[" * 5000 + b"]" * 5000)
    with (
        served(model) as url,
        Jenkins(JenkinsSettings(url=url, user="ci", token=SecretStr("t0ken"), job=model.job), policy=SHORT) as jenkins,
    ):
        page = jenkins.builds(model.job, start=0, stop=16)
        rest = jenkins.builds(model.job, start=15, stop=31)
        if kind == "nested too deep":
            with pytest.raises(JenkinsTooLarge, match="nested too deep"):
                jenkins.build(model.job, 3)
    assert [build.number for build in page.builds] == list(range(20, 4, -1))
    assert [build.number for build in rest.builds] == [5, 4, 3, 2, 1]
    assert (page.whole, rest.whole) == (True, False)
    unreadable = [build for build in (*page.builds, *rest.builds) if isinstance(build, UnreadableBuild)]
    assert [(build.number, build.timestamp > 0) for build in unreadable] == [(20, True), (4, True), (3, True)]
    assert model.requests < 40


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b'"\x1b[2J\x00"', {}),
        (b'"\xff\xfe"', {"a": "\ufffd\ufffd"}),
        (b"1" * 5000, {"a": "inf"}),
        (b"NaN", {"a": "nan"}),
        (b'"\\ud800"', {}),
    ],
)
def test_odd_text_in_one_parameter_costs_that_parameter(stub: Stub, text: bytes, kept: dict[str, str]) -> None:
    body = json.dumps(a_build({"parameters": [{"name": "a", "value": "VALUE"}]})).encode()
    stub.say(Reply(body=body.replace(b'"VALUE"', text)))
    with Jenkins(of(f"{stub.url}/ci", build_parameters="a"), policy=SHORT) as jenkins:
        assert jenkins.build("team/churn", 7).parameters == kept
    assert len(stub.asked) == 1


def test_what_is_wrong_with_one_branch_costs_that_branch(stub: Stub, jenkins: Jenkins) -> None:
    branch = {"nextBuildNumber": 9, "allBuilds": [a_build()]}
    stub.say({"jobs": [{"name": "a", "allBuilds": 5}, {"name": "b", "allBuilds": [None]}, {"name": "main", **branch}]})
    overview = jenkins.overview("team/churn", newest=20)
    assert [job.job for job in overview.jobs] == ["team/churn/main"]
    assert [fault.partition(":")[0] for fault in overview.faults] == ["branch a", "branch b"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([SHA, 9 * 10**18]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["lastBuiltRevision", "SHA1", "branch", "name", "remoteUrls", "parameters", "value", "revision", "hash"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(actions=anything, project=st.none() | st.text(max_size=8))
def test_odd_actions_never_break_a_build(actions: object, project: str | None) -> None:
    odd = actions if isinstance(actions, list) else [actions]
    assert read(a_build(*odd), project=project).number == 7


def overview(answer: dict[str, Any]) -> JobOverview:
    return overview_of(answer, job="team/churn", newest=20, per_branch=2, where="http://j/")


@settings(max_examples=20, deadline=None)
@given(item=anything, number=anything)
def test_any_json_is_a_queue_item_or_a_bad_answer(item: object, number: object) -> None:
    with stub_server() as stub, Jenkins(of(stub.url), policy=SHORT) as jenkins:
        for answer in (item, {"cancelled": number, "executable": item}, {"executable": {"number": number}}):
            stub.say(Reply(body=json.dumps(answer).encode()))
            with contextlib.suppress(JenkinsError):
                found = jenkins.queued_build_number(31)
                assert found is None or isinstance(found, int)


@given(data=anything | st.fixed_dictionaries({"number": anything, "timestamp": anything, "allBuilds": anything}))
def test_any_json_is_a_build_or_a_bad_answer(data: object) -> None:
    for reader in (
        lambda: build_summary_of(data, where="http://j/"),
        lambda: read(data),
        lambda: read({**a_build(), "actions": data, "url": data}),
        lambda: job_summary_of(data, job="team/churn", asked=2, where="http://j/"),
        lambda: overview({"jobs": data, "actions": data}),
        lambda: overview({"_class": data, "jobs": [data, {"name": "main", "actions": data, "allBuilds": [data]}]}),
        lambda: overview({"allBuilds": [data, a_build()], "nextBuildNumber": data}),
    ):
        with contextlib.suppress(JenkinsBadAnswer):
            reader()


def test_a_branch_without_a_name_is_left_out(stub: Stub, jenkins: Jenkins) -> None:
    branch = {"nextBuildNumber": 9, "allBuilds": [a_build()]}
    stub.say({"jobs": [{"name": "main", **branch}, {"name": 7, **branch}, branch, None]})
    (summary,) = jenkins.overview("team/churn", newest=20).jobs
    assert summary.job == "team/churn/main"


@given(remote=st.text() | st.builds("https://[{}".format, st.text()))
def test_any_text_may_be_a_remote(remote: str) -> None:
    assert repository_key(remote) == repository_key(remote).lower()
    assert read(a_build(git(SHA, remote)), project=remote).number == 7


# --- starting a build -----------------------------------------------------------------------------------


def test_a_build_is_started_with_a_crumb_and_found_in_the_queue(stub: Stub, jenkins: Jenkins) -> None:
    crumb = {"crumb": "c1", "crumbRequestField": "Jenkins-Crumb"}
    queued = Reply(201, headers={"Location": "http://elsewhere/queue/item/31/"})
    stub.say(crumb, queued, {"cancelled": False}, {"executable": {"number": 8}})
    item = jenkins.start_build("team/churn", {"alpha": "0.5 & more"})
    assert item == 31
    method, path, headers, body = stub.asked[1]
    assert (method, path) == ("POST", "/ci/job/team/job/churn/buildWithParameters")
    assert headers["Jenkins-Crumb"] == "c1"
    assert body == "alpha=0.5+%26+more"
    assert jenkins.queued_build_number(item) is None
    assert jenkins.queued_build_number(item) == 8


def test_crumbs_may_be_switched_off(stub: Stub, jenkins: Jenkins) -> None:
    stub.say(Reply(404), Reply(201, headers={"Location": "/queue/item/5/"}))
    assert jenkins.start_build("team/churn") == 5
    assert stub.asked[1][1] == "/ci/job/team/job/churn/build"


def test_starting_a_build_is_never_repeated(stub: Stub, jenkins: Jenkins) -> None:
    stub.say(Reply(404), Reply(503), Reply(201, headers={"Location": "/queue/item/5/"}))
    with pytest.raises(JenkinsUnavailable):
        jenkins.start_build("team/churn")
    assert len(stub.asked) == 2


def test_a_start_without_a_queue_item_is_a_bad_answer(stub: Stub, jenkins: Jenkins) -> None:
    stub.say(Reply(404), Reply(201))
    with pytest.raises(JenkinsBadAnswer, match="without a queue item"):
        jenkins.start_build("team/churn")


def test_a_cancelled_queue_item_is_told(stub: Stub, jenkins: Jenkins) -> None:
    stub.say({"cancelled": True})
    with pytest.raises(JenkinsNotFound, match="cancelled"):
        jenkins.queued_build_number(31)


# --- what the sensor costs ------------------------------------------------------------------------------


@pytest.mark.parametrize("multibranch", [False, True])
def test_a_known_history_of_ten_thousand_builds_costs_one_request_under_50_kb(multibranch: bool) -> None:
    model = Model(multibranch=multibranch)
    if multibranch:
        for branch in range(100):
            for _ in range(100):
                model.add(job=f"team/churn/feature%2Fbranch-{branch}")
    else:
        model.jobs = {model.job: Job()}
        for _ in range(10_000):
            model.add()
    with (
        served(model) as url,
        Jenkins(JenkinsSettings(url=url, user="ci", token=SecretStr("t0ken"), job=model.job)) as jenkins,
    ):
        settled = discover(model, None, job=model.job)
        while settled.unread:
            settled = discover(model, settled.cursor, job=model.job)
        model.requests = model.bytes_sent = 0
        settled = discover(jenkins, settled.cursor, job=model.job)
    assert (settled.register, settled.unread) == ((), False)
    assert model.requests == 1
    assert model.bytes_sent < 50_000


def test_the_client_and_the_model_agree_on_a_build() -> None:
    model = Model(jobs={"team/churn": Job()})
    build = model.add()
    assert read(build_json(build)) == build
    assert (build.commit, build.repository) == (COMMIT, REMOTE)
    with (
        served(model) as url,
        Jenkins(JenkinsSettings(url=url, user="ci", token=SecretStr("t0ken"), job=model.job)) as jenkins,
    ):
        assert jenkins.builds(model.job, start=0, stop=5) == BuildPage((build,), whole=False)


@contextmanager
def asking(model: Model) -> Iterator[Jenkins]:
    with (
        served(model) as url,
        Jenkins(JenkinsSettings(url=url, user="ci", token=SecretStr("t0ken"), job=model.job), policy=SHORT) as jenkins,
    ):
        yield jenkins


def settle(jenkins: Jenkins, cursor: Cursor | None, *, limits: Limits | None = None) -> Cursor:
    limits = limits or Limits()
    found = discover(jenkins, cursor, job=jenkins.job, limits=limits)
    while found.unread:
        found = discover(jenkins, found.cursor, job=jenkins.job, limits=limits)
    return found.cursor


def test_a_tick_makes_jenkins_load_no_build_where_nothing_moved() -> None:
    model = Model(jobs={"team/churn": Job()})
    for _ in range(1000):
        model.add()
    with asking(model) as jenkins:
        cursor = settle(jenkins, None)
        model.records_loaded = model.requests = 0
        light, thorough = Limits(least_light_ticks=99), Limits(light_ticks=0)
        for _ in range(3):
            cursor = discover(jenkins, cursor, job=model.job, limits=light).cursor
        assert (model.records_loaded, model.requests) == (0, 3)
        cursor = discover(jenkins, cursor, job=model.job, limits=thorough).cursor
        assert (model.records_loaded, model.requests) == (1, 4)
        model.add()
        model.records_loaded = 0
        found = discover(jenkins, cursor, job=model.job, limits=light)
        assert [build.number for build in found.launch] == [1001]
        assert (model.records_loaded, model.requests) == (100, 6)  # to count `builds`, Jenkins loads all of its 100
        running = model.start()
        cursor = discover(jenkins, found.cursor, job=model.job, limits=light).cursor
        model.records_loaded = model.requests = 0
        cursor = discover(jenkins, cursor, job=model.job, limits=light).cursor
        assert (model.records_loaded, model.requests) == (1, 2)
        model.finish(running)
        found = discover(jenkins, cursor, job=model.job, limits=light)
        assert [build.number for build in found.launch] == [1002]
        assert model.records_loaded == 2


def test_a_tick_makes_jenkins_load_one_build_of_a_branch_at_most() -> None:
    model = Model(multibranch=True, jobs={"team/churn/main": Job(primary=True)})
    for branch in ("main", *(f"feature-{number}" for number in range(60))):
        for _ in range(20):
            model.add(job=f"team/churn/{branch}")
    with asking(model) as jenkins:
        cursor = settle(jenkins, None)
        model.records_loaded = model.requests = 0
        for _ in range(3):
            cursor = discover(jenkins, cursor, job=model.job).cursor
        assert (model.records_loaded, model.requests) == (0, 3)
        thorough = discover(jenkins, cursor, job=model.job, limits=Limits(light_ticks=0))
        assert (model.records_loaded, model.requests) == (61, 4)
        assert thorough.register == ()
        model.records_loaded = 0
        model.add(job="team/churn/main")
        found = discover(jenkins, thorough.cursor, job=model.job)
        assert [(build.job, build.number) for build in found.launch] == [("team/churn/main", 21)]
        assert model.records_loaded == 21


@pytest.mark.parametrize(
    "unknown",
    [
        {"builds"},
        {"lastBuild"},
        {"nextBuildNumber"},
        {"builds", "lastBuild"},
        {"lastBuild", "nextBuildNumber"},
        {"builds", "lastBuild", "nextBuildNumber"},
    ],
    ids=lambda value: ",".join(sorted(value)) if isinstance(value, set) else None,
)
@pytest.mark.parametrize("multibranch", [False, True])
def test_a_server_that_does_not_know_a_field_is_asked_as_it_always_was(unknown: set[str], multibranch: bool) -> None:
    model = Model(multibranch=multibranch, unknown_fields=frozenset(unknown))
    name = "team/churn/main" if multibranch else "team/churn"
    for _ in range(3):
        model.add(job=name)
    running = model.start(name)
    with asking(model) as jenkins:
        found = discover(jenkins, None, job=model.job)
        assert [build.number for build in found.launch] == [3]
        launched = []
        for _ in range(4):
            model.add(job=name)
            model.add(job=name)
            found = discover(jenkins, found.cursor, job=model.job)
            launched += [build.number for build in found.launch]
        model.finish(running)
        found = discover(jenkins, found.cursor, job=model.job)
        assert [*launched, *(build.number for build in found.launch)] == [*range(5, 13), 4]
        assert (found.running, found.unread) == ((), False)


class TestTimeout:
    """JENKINS_TIMEOUT_SECONDS, and the time that all questions of a tick have together."""

    SLOW = replace(SHORT, total_seconds=0, answer_seconds=0.2)
    """Too slow for `raw_server`, which sends its parts one by one."""

    def ask(self, url: str, **more: Any) -> int:
        with Jenkins(of(url, **more), policy=self.SLOW) as jenkins:
            return len(jenkins.builds("team/churn", start=0, stop=1).builds)

    def server(self, pieces: int) -> AbstractContextManager[RawServer]:
        body = json.dumps({"builds": [a_build()]}).encode()
        size = -(-len(body) // pieces)
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        return raw_server(head, *parts)

    @pytest.mark.parametrize("policy", ["the client's own", "that of a run"])
    def test_a_slow_answer_is_read_where_the_setting_allows_it(self, policy: str) -> None:
        with self.server(pieces=30) as server:
            with pytest.raises(JenkinsUnavailable, match="in time"):
                self.ask(server.url)
            with Jenkins(of(server.url, timeout_seconds=60), policy=self.SLOW) as jenkins:
                client = jenkins if policy == "the client's own" else jenkins.with_policy(self.SLOW)
                assert len(client.builds("team/churn", start=0, stop=1).builds) == 1

    def test_a_shorter_one_holds_as_well(self) -> None:
        with raw_server(TRICKLES, then=b" ") as server:
            with (
                Jenkins(of(server.url, timeout_seconds=1), policy=replace(SHORT, total_seconds=0)) as jenkins,
                pytest.raises(JenkinsUnavailable, match="in time"),
            ):
                jenkins.build("team/churn", 7)
            assert server.hung_up.wait(30)

    def test_all_questions_of_a_tick_end_in_time_however_long_one_may_take(self) -> None:
        with raw_server(TRICKLES, then=b" ") as server, Jenkins(of(server.url, timeout_seconds=600)) as jenkins:
            tick = jenkins.within(1.5)
            with pytest.raises(JenkinsUnavailable, match="in time"):
                discover(tick, None, job=jenkins.job)
            with pytest.raises(JenkinsUnavailable, match="took too long for the questions before this"):
                tick.build("team/churn", 7)

    @pytest.mark.parametrize("text", ["0", "-5", "nan", "inf", "soon", "3600"])
    def test_what_is_no_timeout_is_refused_by_name(self, text: str) -> None:
        environment = {
            "JENKINS_URL": "http://j",
            "JENKINS_USER": "ci",
            "JENKINS_TOKEN": "t",
            "JENKINS_JOB_NAME": "churn",
            "JENKINS_TIMEOUT_SECONDS": text,
        }
        with pytest.raises(SettingsError, match="JENKINS_TIMEOUT_SECONDS"):
            SettingsSource(lookup=environment.get).read(JenkinsSettings)

    def test_the_default_is_that_of_the_table(self) -> None:
        assert JenkinsSettings.model_fields["timeout_seconds"].default is None
        assert f"default: {retry.JENKINS.answer_seconds:g}." in str(
            JenkinsSettings.model_fields["timeout_seconds"].description
        )
        assert retry.JENKINS.answer_seconds == retry.JENKINS_FOR_A_RUN.answer_seconds
