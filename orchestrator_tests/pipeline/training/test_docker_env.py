"""A docker_env project trains the commit that Jenkins tested, with all it was given, and ends with its training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from orchestrator.names import CONTAINER_LABEL
from orchestrator.pipeline.training.attempt import Attempt
from orchestrator.pipeline.training.config import TrainingConfig
from orchestrator.pipeline.training.metadata import training_metadata
from orchestrator.resources.jenkins.answers import Build
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.git import GitRemote
from orchestrator_tests.support.attempts import ThisRun, World, gone
from orchestrator_tests.support.certificate import PEM
from orchestrator_tests.support.client_certificates import Authority
from orchestrator_tests.support.containers import mlproject
from orchestrator_tests.support.gate import Gate
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

SECRET = "correct-horse-battery"
TRAIN = """
import fcntl, hashlib, json, os, signal, sys, urllib.request
print('this is commit', COMMIT)
what = sys.argv[1]
if what == 'environment':
    digests = {name: hashlib.sha256(value.encode()).hexdigest() for name, value in os.environ.items()}
    print('digests', json.dumps(digests))
    with open(os.environ.get('MLFLOW_TRACKING_SERVER_CERT_PATH', os.devnull)) as ca:
        print('CA', json.dumps(ca.read()))
    with open(os.environ.get('MLFLOW_TRACKING_CLIENT_CERT_PATH', os.devnull)) as certificate:
        print('certificate', hashlib.sha256(certificate.read().encode()).hexdigest())
if what == 'survive':
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what != 'tell':
    print('begun')
    with open(GATE) as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)
if what == 'survive':
    ended = json.dumps({'run_id': os.environ['MLFLOW_RUN_ID'], 'status': 'FINISHED'}).encode()
    update = os.environ['MLFLOW_TRACKING_URI'] + '/api/2.0/mlflow/runs/update'
    urllib.request.urlopen(urllib.request.Request(update, ended, {'Content-Type': 'application/json'})).read()
"""


@dataclass(frozen=True)
class BoxedWorld:
    """A world with a Docker Engine and a docker_env project of two commits."""

    world: World
    engine: DockerEngine
    git: GitRemote
    commits: tuple[str, str]
    gate: Path

    def build(self, number: int, commit: str) -> Build:
        return dataclasses.replace(self.world.build(number, commit), repository=self.git.url)

    def attempt(
        self,
        number: int,
        what: str = "tell",
        *,
        settings: Mapping[str, str],
        commit: int = 1,
        write: Callable[[str], object] = lambda _: None,
    ) -> Attempt:
        settings = dict(settings)
        names = ",".join(filter(None, ["DOCKER_HOST", settings.pop("TRAINING_ENV", "")]))
        given = {"MLPROJECT_DOCKER_ARGS": '{"network": "host"}', "DOCKER_HOST": self.engine.host, **settings}
        return self.world.attempt(
            number,
            run=ThisRun(f"run-{number}"),
            build=self.build(number, self.commits[commit - 1]),
            settings={"MLPROJECT_ENV_MANAGER": "", "TRAINING_ENV": names, **given},
            config=TrainingConfig(parameters={"what": what}),
            write=write,
        )


@pytest.fixture(scope="module")
def boxed(world: World, docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoxedWorld]:
    directory = tmp_path_factory.mktemp("boxed")
    gates = directory / "gates"
    gates.mkdir()
    source = directory / "boxed"
    source.mkdir()
    (source / "MLproject").write_text(mlproject(gates))

    def script(number: int) -> str:
        return TRAIN.replace("COMMIT", str(number)).replace("GATE", repr(str(gates / "gate")))

    (source / "train.py").write_text(script(1))
    with GitRemote(directory / "git", source) as git:
        first = git.head()
        second = git.commit("Train better", {"train.py": script(2)})
        yield BoxedWorld(world, docker_engine, git, (first, second), gates / "gate")


@pytest.fixture
def closed(boxed: BoxedWorld) -> Iterator[Gate]:
    """What trainings other than `tell` wait at."""
    with Gate(boxed.gate) as gate:
        yield gate


class Training(threading.Thread):
    """`attempt.train` in a thread of its own, and its output so far."""

    def __init__(self, boxed: BoxedWorld, number: int, what: str, **settings: str) -> None:
        super().__init__(daemon=True)
        self.output: list[str] = []
        self.error: BaseException | None = None
        self.cancelled = threading.Event()
        self.attempt = boxed.attempt(number, what, write=self._write, settings=settings)

    @property
    def text(self) -> str:
        return "".join(self.output)

    def _write(self, text: str) -> None:
        self.output.append(text)
        if "begun" in self.text:
            self.on_begun()

    def on_begun(self) -> None:
        """What happens once the script runs."""

    def run(self) -> None:
        try:
            self.attempt.train()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def ended(self) -> None:
        self.join(120)
        assert not self.is_alive()


class CancelledTraining(Training):
    """Its Dagster run is cancelled once the script runs."""

    def on_begun(self) -> None:
        if not self.cancelled.is_set():
            self.cancelled.set()
            raise KeyboardInterrupt("cancelled")


def test_the_commit_that_was_tested_is_what_is_trained(boxed: BoxedWorld) -> None:
    for commit in (1, 2):
        output: list[str] = []
        attempt = boxed.attempt(600 + commit, commit=commit, write=output.append, settings={})
        attempt.train()
        attempt.terminate()
        finished = attempt.finished()
        attempt.close()
        text = "".join(output)
        assert f"this is commit {commit}\n" in text
        shown = training_metadata(finished, attempt.plan.build)
        assert shown["commit"].value == boxed.commits[commit - 1]
        assert "code" not in shown


def test_an_image_that_nobody_put_the_commit_into_is_called_by_its_name(boxed: BoxedWorld) -> None:
    output: list[str] = []
    attempt = boxed.attempt(610, write=output.append, settings={"MLPROJECT_BUILD_IMAGE": "false"})
    attempt.train()
    attempt.terminate()
    shown = training_metadata(attempt.finished(), attempt.plan.build)
    attempt.close()
    assert "this is the code of the image\n" in "".join(output)
    assert shown["code"].value == (
        f"code of image tiny (MLPROJECT_BUILD_IMAGE is false), not of commit {boxed.commits[0]}"
    )
    assert "commit" not in shown


def test_a_container_gets_what_the_training_gets_and_its_output_is_live(
    boxed: BoxedWorld, closed: Gate, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(f"# of 'Miller & Sons'\n{PEM}")
    certificate = Authority(tmp_path).issue("trainer")
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    training = Training(
        boxed,
        620,
        "environment",
        TRAINING_ENV="API_KEY,PATH,REQUESTS_CA_BUNDLE",
        API_KEY=SECRET,
        PATH=path,
        REQUESTS_CA_BUNDLE=str(ca),
        MLFLOW_TRACKING_USERNAME="trainer",
        MLFLOW_TRACKING_PASSWORD=f"{SECRET}-of-mlflow",
        MLFLOW_TRACKING_SERVER_CERT_PATH=str(ca),
        MLFLOW_TRACKING_CLIENT_CERT_PATH=str(certificate),
    )
    training.start()
    until(lambda: "begun" in training.text or not training.is_alive(), seconds=120)
    assert training.error is None, training.error
    try:
        (instance,) = [boxed.world.ec2.find(pipeline="tiny", partition="620")]
        assert instance is not None
        (container,) = boxed.engine.containers(f"{CONTAINER_LABEL}={instance.mlflow_run}")
        (described,) = json.loads(boxed.engine.run("inspect", container))
        for part in ("Path", "Args", "HostConfig", "Mounts"):
            assert SECRET not in json.dumps(described[part])
        assert SECRET not in json.dumps({key: value for key, value in described["Config"].items() if key != "Env"})
        assert described["HostConfig"]["Init"] is True
        assert not [process for process in psutil.process_iter(["cmdline"]) if SECRET in str(process.info["cmdline"])]
        homes = list(boxed.world.directory.rglob(".orchestrator"))
        assert homes
        held = [path for home in homes for path in home.rglob("*") if path.is_file() and not path.is_symlink()]
        assert [path.name for path in held if path.name == "docker.env"]
        assert not [path for path in held if SECRET in path.read_text(errors="replace")]
    finally:
        closed.open()
        training.ended()
        training.attempt.close()
    assert training.error is None
    digests = json.loads(training.text.split("digests ")[1].splitlines()[0])

    def is_there(name: str, value: str) -> bool:
        return bool(digests.get(name) == hashlib.sha256(value.encode()).hexdigest())

    assert is_there("API_KEY", SECRET)
    assert is_there("MLFLOW_TRACKING_USERNAME", "trainer")
    assert is_there("MLFLOW_TRACKING_PASSWORD", f"{SECRET}-of-mlflow")
    assert is_there("PYTHONUNBUFFERED", "1")
    assert not is_there("PATH", path)
    assert "REQUESTS_CA_BUNDLE" not in digests
    assert json.loads(training.text.split("CA ")[1].splitlines()[0]) == ca.read_text()
    assert f"certificate {hashlib.sha256(certificate.read_bytes()).hexdigest()}" in training.text
    assert SECRET not in training.text


def test_an_env_file_of_the_user_s_own_and_flags_are_kept(boxed: BoxedWorld, closed: Gate, tmp_path: Path) -> None:
    own = tmp_path / "own.env"
    own.write_text("API_KEY=theirs\nOWN=yes\n")
    arguments = {"network": "host", "env-file": str(own), "label": "team=ml", "init": False, "read-only": True}
    training = Training(
        boxed, 630, "environment", TRAINING_ENV="API_KEY", API_KEY=SECRET, MLPROJECT_DOCKER_ARGS=json.dumps(arguments)
    )
    training.start()
    until(lambda: "begun" in training.text or not training.is_alive(), seconds=120)
    assert training.error is None, training.error
    (container,) = boxed.engine.containers("team=ml")
    (described,) = json.loads(boxed.engine.run("inspect", container))
    closed.open()
    training.ended()
    training.attempt.close()
    assert training.error is None
    assert not described["HostConfig"].get("Init")
    assert described["HostConfig"]["ReadonlyRootfs"] is True
    assert described["Config"]["Labels"].keys() >= {"team", CONTAINER_LABEL}
    digests = json.loads(training.text.split("digests ")[1].splitlines()[0])
    assert digests["API_KEY"] == hashlib.sha256(b"theirs").hexdigest()
    assert digests["OWN"] == hashlib.sha256(b"yes").hexdigest()


def test_a_cancelled_training_leaves_no_container_that_could_call_itself_finished(
    boxed: BoxedWorld, closed: Gate
) -> None:
    training = CancelledTraining(boxed, 640, "survive")
    training.start()
    training.ended()
    assert isinstance(training.error, KeyboardInterrupt)
    (run,) = boxed.world.mlflow.find_runs(
        boxed.world.environment["MLFLOW_EXPERIMENT_ID"], tags={"dagster_run_id": "run-640"}
    )
    assert not boxed.engine.containers(f"{CONTAINER_LABEL}={run.id}")
    closed.open()
    training.attempt.close()
    assert boxed.world.mlflow.run(run.id).status == "KILLED"
    assert gone(boxed.world, run.tags["ec2.instance_id"])
