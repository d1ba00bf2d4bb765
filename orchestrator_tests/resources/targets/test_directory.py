"""A directory as target: one release or the other is in use, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import DeploymentError, TargetHeld, TargetUnavailable
from orchestrator.resources.targets import DirectoryTarget, ModelFolder
from orchestrator_tests.support.releases import model_folder, release


@pytest.fixture
def target(tmp_path: Path) -> DirectoryTarget:
    return DirectoryTarget(tmp_path / "srv" / "churn")


def in_use(tmp_path: Path) -> str:
    return (tmp_path / "srv/churn/current/version.txt").read_text()


def test_nothing_is_in_use_in_a_directory_that_is_not_there(target: DirectoryTarget) -> None:
    assert target.state() is None


def test_a_release_is_in_use_and_says_what_it_is(target: DirectoryTarget, tmp_path: Path) -> None:
    assert target.deploy(release(1), model_folder(tmp_path, 1)) is None

    found = target.state()
    assert found is not None
    assert (found.version, found.build, found.commit, found.pipeline) == ("1", "7", "c0ffee", "churn")
    assert found.deployed_at.endswith("+00:00")
    assert in_use(tmp_path) == "1"
    assert (tmp_path / "srv/churn/current/data/weights.bin").read_text() == "12345"
    assert json.loads((tmp_path / "srv/churn/current/deployed.json").read_text())["version"] == "1"


def test_the_one_before_is_kept_and_the_oldest_are_not(target: DirectoryTarget, tmp_path: Path) -> None:
    for version in range(1, 6):
        before = target.deploy(release(version), model_folder(tmp_path, version))
        assert (before.version if before else None) == (str(version - 1) if version > 1 else None)

    assert sorted(folder.name for folder in (tmp_path / "srv/churn/releases").iterdir()) == ["3", "4", "5"]
    assert in_use(tmp_path) == "5"
    target.deploy(release(3), model_folder(tmp_path, 3))
    assert in_use(tmp_path) == "3"


def test_the_same_again_changes_nothing_unless_files_are_broken(target: DirectoryTarget, tmp_path: Path) -> None:
    model = model_folder(tmp_path, 1)
    target.deploy(release(1), model)
    first = (tmp_path / "srv/churn/current").stat().st_ino
    target.deploy(release(1), model)
    assert (tmp_path / "srv/churn/current").stat().st_ino == first

    (tmp_path / "srv/churn/current/version.txt").write_text("x")
    target.deploy(release(1), model)
    assert in_use(tmp_path) == "1"


def test_what_another_pipeline_holds_is_refused(target: DirectoryTarget, tmp_path: Path) -> None:
    target.deploy(release(1), model_folder(tmp_path, 1))
    for other in ({"pipeline": "other"}, {"deployment": "production"}):
        with pytest.raises(TargetHeld, match="pipeline 'churn' of installation 'lab'"):
            target.deploy(release(2, **other), model_folder(tmp_path, 2))
        assert in_use(tmp_path) == "1"
    target.deploy(release(2, pipeline="other"), model_folder(tmp_path, 2), take_over=True)
    found = target.state()
    assert found is not None
    assert found.pipeline == "other"


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"model": 1}', "[" * 100_000, '{"version": "../.."}'])
def test_a_record_of_somebody_else_is_no_state(target: DirectoryTarget, tmp_path: Path, record: str) -> None:
    target.deploy(release(1), model_folder(tmp_path, 1))
    (tmp_path / "srv/churn/current/deployed.json").write_text(record)
    with pytest.raises(TargetHeld, match=r"deployed\.json"):
        target.state()


def test_a_current_that_is_not_ours_is_left_alone(target: DirectoryTarget, tmp_path: Path) -> None:
    (tmp_path / "srv/churn/current").mkdir(parents=True)
    with pytest.raises(TargetHeld, match="not a link"):
        target.deploy(release(1), model_folder(tmp_path, 1))
    (tmp_path / "srv/churn/current").rmdir()
    (tmp_path / "srv/churn/current").symlink_to(tmp_path)
    with pytest.raises(TargetHeld, match=r"no deployed\.json"):
        target.deploy(release(1), model_folder(tmp_path, 1))


def test_one_deployment_at_a_time(target: DirectoryTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, second = model_folder(tmp_path, 1), model_folder(tmp_path, 2)
    refused: list[BaseException] = []

    def deploy_another(*_: Any, **__: Any) -> None:
        with pytest.raises(TargetUnavailable, match="another deployment") as error:
            DirectoryTarget(tmp_path / "srv" / "churn").deploy(release(2), second)
        refused.append(error.value)

    monkeypatch.setattr(target, "_switch", deploy_another)
    target.deploy(release(1), copy)
    assert refused


class CrashError(BaseException):
    pass


def test_a_crash_at_any_point_leaves_one_of_the_two_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each call that changes something on the disk; what comes after it finds its way."""
    models = {version: model_folder(tmp_path, version) for version in (1, 2)}
    seen = set[str]()
    for point in range(1, 100):
        shutil.rmtree(tmp_path / "srv", ignore_errors=True)
        target = DirectoryTarget(tmp_path / "srv/churn")
        target.deploy(release(1), models[1])
        calls = 0

        def crashing(call: Callable[..., Any], point: int = point) -> Callable[..., Any]:
            def crash_or(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == point:
                    raise CrashError
                return call(*arguments, **options)

            return crash_or

        with monkeypatch.context() as patch, contextlib.suppress(CrashError):
            for owner, name in [
                (os, "fsync"),
                (shutil, "rmtree"),
                *((Path, name) for name in ("mkdir", "rename", "replace", "symlink_to", "unlink")),
            ]:
                patch.setattr(owner, name, crashing(getattr(owner, name)))
            target.deploy(release(2), models[2])
        if calls < point:
            break
        found = target.state()
        assert found is not None
        assert found.version == in_use(tmp_path)
        seen.add(found.version)
        target.deploy(release(2), models[2])
        assert in_use(tmp_path) == "2"
        assert not list((tmp_path / "srv/churn/releases").glob(".*"))
    else:
        pytest.fail("a deployment has no end")
    assert seen == {"1", "2"}


@pytest.mark.parametrize("name", ["deployed.json", "a\\b", "a\nb"])
def test_names_that_cannot_be_deployed_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeploymentError, match="deployed"):
        model_folder(tmp_path, 1, **{name: "x"})


def test_a_model_that_changes_while_it_is_copied_is_not_deployed(target: DirectoryTarget, tmp_path: Path) -> None:
    model = model_folder(tmp_path, 1)
    (model.folder / "MLmodel").write_text("other")
    with pytest.raises(DeploymentError, match="changed"):
        target.deploy(release(1), model)
    assert target.state() is None


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TargetUnavailable, match=f"directory {tmp_path}/file/churn cannot be used"):
        DirectoryTarget(tmp_path / "file" / "churn").deploy(release(1), model_folder(tmp_path))


@pytest.mark.parametrize("version", ["", "..", "a/b", ".hidden", "x" * 101])
def test_a_version_is_the_name_of_a_folder(version: str) -> None:
    with pytest.raises(DeploymentError, match="version"):
        release(version)


def test_a_folder_of_files_knows_their_sizes(tmp_path: Path) -> None:
    model: ModelFolder = model_folder(tmp_path, 1)
    assert model.size == sum(path.stat().st_size for path in model.folder.rglob("*") if path.is_file())
    assert model.read("version.txt") == b"1"
    assert model.read("../x") is None
