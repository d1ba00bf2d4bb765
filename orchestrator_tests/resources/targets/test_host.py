"""An inference host as target, under load: HAProxy, OpenSSH and servers as they are, and no request lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import DeploymentError, DeploymentFailed, TargetHeld, TargetUnavailable
from orchestrator.resources.targets import HostTarget, ModelFolder
from orchestrator.resources.targets.host import SERVE
from orchestrator_tests.support.inference_host import Clients, HAProxyHost, served_model, switched_under_load
from orchestrator_tests.support.releases import release
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HAProxyHost]:
    with HAProxyHost(tmp_path) as host:
        yield host


def test_no_request_is_lost_in_4_switches_of_which_1_fails(host: HAProxyHost, tmp_path: Path) -> None:
    switched_under_load(host, tmp_path, switches=4, bad={4}, clients=6)


def test_a_model_that_does_not_work_never_gets_a_request(host: HAProxyHost, tmp_path: Path) -> None:
    target = host.target(start_seconds=3)
    with pytest.raises(DeploymentFailed, match="sklearn_of_tomorrow"):
        target.deploy(release(1), served_model(tmp_path, 1, kind="crash"))
    assert target.state() is None
    assert host.asked()[0] == 503

    host.target().deploy(release(2), served_model(tmp_path, 2))
    faults = {"crash": "ended with status 1", "sick": "not healthy after 3 s", "short": "1 predictions for 2 rows"}
    for version, (kind, sentence) in enumerate(faults.items(), start=3):
        with pytest.raises(DeploymentFailed, match=sentence) as error:
            target.deploy(release(version), served_model(tmp_path, version, kind=kind))
        assert "still serves what it did" in str(error.value)
        if kind != "crash":
            assert f"serving version {version}" in str(error.value)
        assert host.asked() == (200, "2")
        assert len(host.listening()) == 1


def test_who_holds_it_and_what_is_there_already(host: HAProxyHost, tmp_path: Path) -> None:
    target = host.target()
    assert target.state() is None
    assert target.deploy(release(1), served_model(tmp_path, 1)) is None
    found = target.state()
    assert found is not None
    assert (found.version, found.build, found.commit) == ("1", "7", "c0ffee")
    port = host.listening()
    with pytest.raises(TargetHeld, match="pipeline 'churn' of installation 'lab'"):
        target.deploy(release(2, pipeline="other"), served_model(tmp_path, 2))
    target.deploy(release(1), served_model(tmp_path, 1))
    assert host.listening() == port, "the same model was started again"
    target.deploy(release(2, pipeline="other"), served_model(tmp_path, 2), take_over=True)
    assert host.asked() == (200, "2")


def test_a_server_that_dies_comes_back_and_one_whose_host_did_is_deployed_again(
    host: HAProxyHost, tmp_path: Path
) -> None:
    target = host.target()
    target.deploy(release(1), served_model(tmp_path, 1))
    [slot] = [path for path in host.base.glob("slots/*") if (path / "server.json").exists()]
    first = json.loads((slot / "server.json").read_text())["pid"]
    os.kill(first, signal.SIGKILL)
    until(lambda: json.loads((slot / "server.json").read_text())["pid"] != first)
    until(lambda: host.asked() == (200, "1"))

    os.kill(json.loads((slot / "keeper.json").read_text())["pid"], signal.SIGKILL)  # a reboot leaves neither
    os.killpg(json.loads((slot / "server.json").read_text())["pid"], signal.SIGKILL)
    until(lambda: not host.listening())
    assert target.state() is None
    with pytest.raises(TargetHeld):
        target.deploy(release(2, pipeline="other"), served_model(tmp_path, 2))
    target.deploy(release(1), served_model(tmp_path, 1))
    until(lambda: host.asked() == (200, "1"))


def test_haproxy_may_be_restarted_whichever_slot_serves(host: HAProxyHost, tmp_path: Path) -> None:
    target = host.target()
    for version in (1, 2):
        target.deploy(release(version), served_model(tmp_path, version))
        host.stop_haproxy()
        host.start_haproxy()
        assert {host.asked() for _ in range(20)} == {(200, str(version))}
        found = target.state()
        assert found is not None
        assert found.version == str(version)


def test_a_deployment_that_was_killed_between_the_slots_is_ended_by_the_next(host: HAProxyHost, tmp_path: Path) -> None:
    target = host.target()
    target.deploy(release(1), served_model(tmp_path, 1))
    before = set(host.base.glob("slots/*/keeper.json"))
    with Clients(host, 2) as load:
        first = threading.Thread(target=deploy_and_lose, args=(host.target(), served_model(tmp_path, 2, kind="sick")))
        first.start()
        keeper = until(lambda: {path for path in host.base.glob("slots/*/keeper.json") if path not in before}).pop()
        until(lambda: len(host.listening()) == 2)
        with pytest.raises(TargetUnavailable, match="another deployment is under way"):
            target.deploy(release(3), served_model(tmp_path, 3))
        psutil.Process(json.loads(keeper.read_text())["pid"]).parent().kill()  # type: ignore[union-attr]
        first.join()
        found = target.state()
        assert found is not None
        assert found.version == "1"
        target.deploy(release(3), served_model(tmp_path, 3))
        load.await_answers(4)
    assert set(load.answers) <= {(200, "1"), (200, "3")}
    assert host.asked() == (200, "3")
    assert len(host.listening()) == 1


def deploy_and_lose(target: HostTarget, model: ModelFolder) -> None:
    with pytest.raises(TargetUnavailable):
        target.deploy(release(2), model)


def test_another_server_on_a_slots_port_is_named(host: HAProxyHost, tmp_path: Path) -> None:
    model = served_model(tmp_path, 9)
    stranger = subprocess.Popen([sys.executable, str(model.folder / "serve.py"), str(host.slots[1])])
    try:
        until(host.listening)
        with pytest.raises(TargetHeld, match=f"port {host.slots[1]}, which is for server churn/b"):
            host.target().deploy(release(1), served_model(tmp_path, 1))
    finally:
        stranger.kill()
        stranger.wait()


def test_faults_of_the_host_are_named_and_nothing_is_sent_to_another_one(host: HAProxyHost, tmp_path: Path) -> None:
    wrong = {
        "port": (host.port, TargetUnavailable, "cannot be reached"),
        "user": ("nobody-here", TargetUnavailable, "`user` and `key_path`"),
        "python": ("python-of-tomorrow", TargetUnavailable, "python-of-tomorrow"),
        "admin_socket": ("/nowhere/admin.sock", TargetUnavailable, "/nowhere/admin.sock"),
        "backend": ("nobody", TargetUnavailable, "no backend nobody"),
    }
    for name, (value, kind, sentence) in wrong.items():
        with pytest.raises(kind, match=sentence):
            host.target(**{name: value}).state()
    key = (host.sshd.directory / "login_ed25519.pub").read_text().rsplit(" ", 1)[0]
    with pytest.raises(DeploymentError, match="host_key"):
        host.target(host_key=key).deploy(release(1), served_model(tmp_path, 1))
    assert not host.base.exists()


def test_a_model_of_many_and_large_files_arrives_whole(host: HAProxyHost, tmp_path: Path) -> None:
    model = served_model(tmp_path, 1)
    (model.folder / "weights").mkdir()
    (model.folder / "weights/large.bin").write_bytes(os.urandom(1 << 20) * 17)
    (model.folder / "weights/empty").touch()
    whole = type(model).of(model.folder)
    host.target().deploy(release(1), whole)
    kept = host.base / "releases/1/weights/large.bin"
    assert kept.read_bytes() == (model.folder / "weights/large.bin").read_bytes()
    assert (host.base / "releases/1/weights/empty").read_bytes() == b""
    with pytest.raises(DeploymentError, match="version"):
        host.target().deploy(replace(release(1), version="../x"), whole)


def test_mlflow_models_serve_serves_a_model_of_scikit_learn(host: HAProxyHost, tmp_path: Path) -> None:
    folder = tmp_path / "sklearn-model"
    subprocess.run([sys.executable, "-c", _SAVE, str(folder)], check=True, env={**os.environ, "DO_NOT_TRACK": "true"})
    serve = f"{Path(sys.executable).parent / 'mlflow'}{SERVE.removeprefix('mlflow')}"
    target = host.target(serve=serve, start_seconds=300)
    target.deploy(release(1), ModelFolder.of(folder))
    status, version = host.asked()
    assert status == 200
    assert str(version) in "01"


_SAVE = """\
import sys
import mlflow.sklearn
import numpy
from sklearn.linear_model import LogisticRegression
rows = numpy.array([[0.0], [1.0], [2.0], [3.0]])
model = LogisticRegression().fit(rows, [0, 0, 1, 1])
mlflow.sklearn.save_model(model, sys.argv[1], input_example=rows[:2])
"""
