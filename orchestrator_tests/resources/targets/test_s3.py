"""A prefix in S3 as target, against moto, which honours If-Match and If-None-Match."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from orchestrator.errors import TargetHeld, TargetUnavailable
from orchestrator.resources.targets import TargetBlock
from orchestrator.resources.targets.s3 import S3Target
from orchestrator_tests.support.releases import model_folder, release

BUCKET = "models"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client = boto3.session.Session().client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture
def target(s3: Any) -> S3Target:
    return S3Target(BUCKET, "team/churn")


def in_use(s3: Any) -> str:
    pointer = json.loads(s3.get_object(Bucket=BUCKET, Key="team/churn/current.json")["Body"].read())
    key = f"team/churn/{pointer['path']}/version.txt"
    return str(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode())


def releases(s3: Any) -> set[str]:
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix="team/churn/releases/").get("Contents", [])
    return {entry["Key"].split("/")[3] for entry in found}


def test_moto_honours_the_conditions(s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="x", Body=b"1", IfNoneMatch="*")
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"another"'}):
        with pytest.raises(ClientError, match="PreconditionFailed"):
            s3.put_object(Bucket=BUCKET, Key="x", Body=b"2", **condition)


def test_releases_follow_each_other_and_the_oldest_are_removed(s3: Any, target: S3Target, tmp_path: Path) -> None:
    assert target.state() is None
    for version in range(1, 6):
        before = target.deploy(release(version), model_folder(tmp_path, version))
        assert (before.version if before else None) == (str(version - 1) if version > 1 else None)
        assert in_use(s3) == str(version)
        found = target.state()
        assert found is not None
        assert (found.version, found.build, found.commit) == (str(version), "7", "c0ffee")
    assert releases(s3) == {"3", "4", "5"}
    target.deploy(release(4), model_folder(tmp_path, 4))
    assert in_use(s3) == "4"


def test_as_many_releases_stay_as_are_wanted(s3: Any, tmp_path: Path) -> None:
    target = S3Target(BUCKET, "team/churn", keep=5)
    for version in range(1, 8):
        target.deploy(release(version), model_folder(tmp_path, version))
        assert len(releases(s3)) == min(version, 5)


def test_the_files_are_there_before_the_pointer(
    s3: Any, target: S3Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.deploy(release(1), model_folder(tmp_path, 1))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(target, "_write_pointer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            target.deploy(release(2), model_folder(tmp_path, 2))
    assert in_use(s3) == "1"
    assert "2" in releases(s3)
    target.deploy(release(2), model_folder(tmp_path, 2))
    assert in_use(s3) == "2"


@pytest.mark.parametrize("first", [True, False])
def test_of_two_at_once_one_is_refused(
    s3: Any, target: S3Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    if not first:
        target.deploy(release(1), model_folder(tmp_path, 1))
    upload = target._upload

    def overtaken(*arguments: Any) -> None:
        upload(*arguments)
        S3Target(BUCKET, "team/churn").deploy(release(3), model_folder(tmp_path, 3))

    monkeypatch.setattr(target, "_upload", overtaken)
    with pytest.raises(TargetUnavailable, match="was faster"):
        target.deploy(release(2), model_folder(tmp_path, 2))
    assert in_use(s3) == "3"


def test_the_same_again_writes_nothing_unless_files_are_missing(s3: Any, target: S3Target, tmp_path: Path) -> None:
    model = model_folder(tmp_path, 1)
    target.deploy(release(1), model)
    tag = s3.head_object(Bucket=BUCKET, Key="team/churn/current.json")["LastModified"]
    target.deploy(release(1), model)
    assert s3.head_object(Bucket=BUCKET, Key="team/churn/current.json")["LastModified"] == tag
    s3.delete_object(Bucket=BUCKET, Key="team/churn/releases/1/version.txt")
    target.deploy(release(1), model)
    assert in_use(s3) == "1"


def test_what_another_pipeline_holds_is_refused(s3: Any, target: S3Target, tmp_path: Path) -> None:
    target.deploy(release(1), model_folder(tmp_path, 1))
    with pytest.raises(TargetHeld, match="pipeline 'churn'"):
        target.deploy(release(2, pipeline="other"), model_folder(tmp_path, 2))
    s3.put_object(Bucket=BUCKET, Key="team/churn/current.json", Body=b"{}")
    with pytest.raises(TargetHeld, match="has not written"):
        target.state()


def test_what_aws_refuses_is_named(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match=r"s3://nowhere/x cannot be used .*NoSuchBucket"):
        S3Target("nowhere", "x").deploy(release(1), model_folder(tmp_path, 1))


def test_an_address_is_checked_when_it_is_read(s3: Any) -> None:
    assert TargetBlock.parse('{"s3": "s3://models/team/churn/"}').open().place == "s3://models/team/churn"
    for wrong in ("http://models", "s3://", "s3://Models_/x", "s3://models/../x"):
        with pytest.raises(Exception, match="s3://bucket"):
            TargetBlock.parse(json.dumps({"s3": wrong}))
