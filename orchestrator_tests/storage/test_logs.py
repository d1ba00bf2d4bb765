"""The output of each step: in S3 by one setting, else where it always was."""

from __future__ import annotations

import shutil
from pathlib import Path

import boto3
import dagster as dg
import pytest
from moto.server import ThreadedMotoServer

from orchestrator.errors import SettingsError
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.dockerfile import PROJECT

AWS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


@dg.op
def speak() -> None:
    print("hello there", flush=True)  # noqa: T201 - what is captured


@dg.job
def speech() -> None:
    speak()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DAGSTER_POSTGRES_URL", "COMPUTE_LOGS_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(PROJECT / "dagster.yaml", tmp_path)
    return tmp_path


def _output(home: Path) -> str:
    """What the UI of a machine that has run nothing shows of a run."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        result = speech.execute_in_process(instance=instance)
        assert result.success
        (captured,) = [event for event in result.all_events if event.event_type_value == "LOGS_CAPTURED"]
        key = [result.run_id, "compute_logs", captured.logs_captured_data.file_key]
    other = home / "other"
    other.mkdir(exist_ok=True)
    shutil.copy(PROJECT / "dagster.yaml", other)
    with dg.DagsterInstance.from_config(str(other)) as instance:
        data = instance.compute_log_manager.get_log_data(key)
    return (data.stdout or b"").decode()


@pytest.mark.services
def test_in_s3_the_output_is_seen_from_another_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    try:
        url = f"http://127.0.0.1:{server._port}"
        for name, value in AWS.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="our-logs")
        boto3.setup_default_session()
        (home / ".env").write_text(f"COMPUTE_LOGS_S3=s3://our-logs/team/dagster\nAWS_ENDPOINT_URL={url}\n")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "")
        assert "hello there" in _output(home)
        listing = boto3.client("s3", endpoint_url=url).list_objects_v2(Bucket="our-logs")
        assert all(found["Key"].startswith("team/dagster/storage/") for found in listing["Contents"])
    finally:
        server.stop()


@pytest.mark.services
def test_without_s3_the_run_succeeds_all_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**AWS, "AWS_MAX_ATTEMPTS": "1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMPUTE_LOGS_S3", "s3://our-logs")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert speech.execute_in_process(instance=instance).success


def test_without_the_setting_it_lies_where_it_always_lay(home: Path) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run = speech.execute_in_process(instance=instance)
    (file,) = (home / "storage" / run.run_id / "compute_logs").glob("*.out")
    assert file.read_text() == "hello there\n"


@pytest.mark.parametrize("place", ["our-logs", "s3://", "s3://UPPER/x", "https://our-logs.s3.amazonaws.com/x"])
def test_what_is_no_place_in_s3_is_refused(place: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_LOGS_S3", place)
    with pytest.raises(SettingsError, match=f"COMPUTE_LOGS_S3='{place}' is wrong: a place in S3 looks like s3://"):
        dg.DagsterInstance.from_config(str(home))
