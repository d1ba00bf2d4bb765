"""One attempt at one build: what it trains, what it leaves, and what it takes over."""

from __future__ import annotations

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from orchestrator.errors import (
    BuildBusy,
    InstanceLost,
    MlflowNotFound,
    MlflowUnavailable,
    SettingsError,
    SshError,
    TrainingFailed,
    TrainingTimedOut,
)
from orchestrator.names import Ec2Tag
from orchestrator.pipeline.training.config import TrainingConfig
from orchestrator.resources.ec2 import timestamp
from orchestrator_sandbox.proxy import HUNG_UP, FaultyProxy
from orchestrator_tests.support.attempts import PROJECT, ThisRun, World, gone, provisioned, trained_metrics
from orchestrator_tests.support.client_certificates import Authority
from orchestrator_tests.support.waiting import until

NASTY = 'it\'s "quoted", `id` $(id) ${HOME} \\ ; & | * ü\tand\nmore -x=1'


def test_a_build_is_trained_at_its_commit_and_the_instance_given_back(world: World) -> None:
    tested = world.git.head()
    world.git.commit("The branch moves on", {"later.txt": "not tested"})
    output: list[str] = []
    attempt = world.attempt(
        1,
        run=ThisRun("run-1"),
        build=world.build(1, commit=tested),
        settings={"MLPROJECT_PARAMETERS": json.dumps({"note": NASTY})},
        write=output.append,
    )
    attempt.check()
    instance = provisioned(attempt)
    run_id = attempt.train()
    usage = attempt.terminate()
    finished = attempt.finished()

    assert gone(world, instance.id)
    assert finished.run.id == run_id
    assert finished.run.status == "FINISHED"
    assert trained_metrics(finished.run) == {"accuracy": 0.75}
    assert [point.value for point in finished.histories["accuracy"]] == [0.25, 0.5, 0.75]
    assert finished.run.params == {"note": NASTY, "status": "0"}
    assert ascii(NASTY) in "".join(output), "the parameter reached the training as it was written"
    tags = finished.run.tags
    assert tags["mlflow.source.git.commit"] == tested
    assert tags["dagster_run_id"] == "run-1"
    assert tags["jenkins.build"] == "1"
    assert tags["ec2.instance_id"] == instance.id
    assert tags["ec2.instance_type"] == "t3.medium"
    assert usage is not None
    assert finished.usage is not None
    assert finished.usage.instance_id == instance.id
    assert finished.usage.usd == pytest.approx(finished.usage.minutes * 3.6 / 60, abs=1e-4)


@pytest.mark.services
def test_a_server_that_asks_for_a_client_certificate_is_shown_one_by_us_and_by_the_training(
    world: World, tmp_path: Path
) -> None:
    logs_with_certificate = PROJECT["train.py"].replace("urlopen(request)", "urlopen(request, context=context)")
    prelude = (
        "import os, ssl\n"
        "context = ssl.create_default_context(cafile=os.environ['MLFLOW_TRACKING_SERVER_CERT_PATH'])\n"
        "context.load_cert_chain(os.environ['MLFLOW_TRACKING_CLIENT_CERT_PATH'])\n"
    )
    commit = world.git.commit("Show a certificate", {"train.py": prelude + logs_with_certificate})
    world.git.commit("Show none", {"train.py": PROJECT["train.py"]})
    authority = Authority(tmp_path)
    ca, server, ours = authority.file, authority.issue("server"), authority.issue("ours")
    with FaultyProxy(world.mlflow_server.url, certificate=server, client_ca=ca) as mlflow:
        attempt = world.attempt(
            40,
            run=ThisRun("run-40"),
            build=world.build(40, commit=commit),
            settings={
                "MLFLOW_TRACKING_URI": mlflow.url,
                "MLFLOW_TRACKING_SERVER_CERT_PATH": str(ca),
                "MLFLOW_TRACKING_CLIENT_CERT_PATH": str(ours),
            },
        )
        attempt.check()
        attempt.train()
        attempt.terminate()
        assert trained_metrics(attempt.finished().run) == {"accuracy": 0.75}


def test_a_training_that_exits_non_zero_is_red_with_its_last_lines_and_leaves_no_instance(world: World) -> None:
    attempt = world.attempt(2, run=ThisRun("run-2"), config=TrainingConfig(parameters={"status": "3"}))
    instance = provisioned(attempt)
    with pytest.raises(TrainingFailed) as error:
        attempt.train()
    assert "build 2: the training exited with status 1" in str(error.value)
    assert "ValueError: the data is not what it was" in str(error.value)
    assert gone(world, instance.id)
    run = world.mlflow.run(instance.mlflow_run)
    assert run.status == "FAILED"
    assert "exited with status 1" in run.tags["orchestrator.reason"]


@pytest.mark.services
def test_an_unknown_entry_point_is_told_in_the_error(world: World) -> None:
    attempt = world.attempt(3, run=ThisRun("run-3"), config=TrainingConfig(entry_point="evaluate"))
    with pytest.raises(TrainingFailed, match="Could not find evaluate among entry points"):
        attempt.train()
    assert world.ec2.find(pipeline="tiny", partition="3") is None


def test_a_commit_that_the_repository_does_not_have_is_told_in_the_error(world: World) -> None:
    attempt = world.attempt(4, run=ThisRun("run-4"), build=world.build(4, commit="0123456789" * 4))
    with pytest.raises(TrainingFailed, match="0123456789"):
        attempt.train()
    assert world.ec2.find(pipeline="tiny", partition="4") is None


def test_every_argument_arrives_as_it_is_and_no_shell_reads_it(world: World) -> None:
    program = world.script(
        "argv", "#!/usr/bin/env python\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(9)\n"
    )
    output: list[str] = []
    attempt = world.attempt(
        5,
        run=ThisRun("run-5"),
        settings={
            **program,
            "MLPROJECT_BUILD_IMAGE": "true",
            "MLPROJECT_DOCKER_ARGS": '{"gpus": "all", "t": ""}',
            "MLPROJECT_URI": "#sub dir",
        },
        config=TrainingConfig(parameters={"note": NASTY}, entry_point="-x; id"),
        write=output.append,
    )
    with pytest.raises(TrainingFailed, match="status 9"):
        attempt.train()
    given = json.loads("".join(output))
    assert given[:3] == ["run", "--version", world.git.head()]
    assert given[-2:] == ["--", f"{world.git.url}#sub dir"]
    assert given[given.index("--entry-point") + 1] == "-x; id"
    assert given[given.index("--env-manager") + 1] == "local"
    assert given[given.index("--param-list") + 1] == f"note={NASTY}"
    assert "--build-image" in given
    label, env_file, *others = [given[i + 1] for i, word in enumerate(given) if word == "--docker-args"]
    run_id = given[given.index("--run-id") + 1]
    assert label == f"label=orchestrator.training={run_id}"
    assert env_file.startswith("env-file=/")
    assert env_file.endswith(f"/.orchestrator/{run_id}/docker.env")
    assert others == ["gpus=all", "t", "init"]


def test_secrets_that_the_training_prints_are_masked(world: World) -> None:
    program = world.script("leak", '#!/bin/sh\necho "the password is $DB_PASSWORD"\nexit 1\n')
    output: list[str] = []
    secrets = {"TRAINING_ENV": "DB_PASSWORD", "DB_PASSWORD": "correct horse battery"}
    attempt = world.attempt(6, run=ThisRun("run-6"), settings={**program, **secrets}, write=output.append)
    with pytest.raises(TrainingFailed) as error:
        attempt.train()
    assert "the password is ****" in "".join(output)
    assert "correct horse" not in "".join(output) + str(error.value)


@pytest.mark.services
@pytest.mark.parametrize("status", [0, 1])
def test_of_a_flood_of_output_the_log_holds_both_ends_and_mlflow_the_whole(world: World, status: int) -> None:
    text = (
        "#!/usr/bin/env python3\nimport os\n"
        "for number in range(300_000): print(f'{number:09d}')\n"
        "print('\\x1b]0;title\\x07it is', os.environ['DB_PASSWORD'])\n"
        f"raise SystemExit({status})\n"
    )
    settings = {"TRAINING_ENV": "DB_PASSWORD", "DB_PASSWORD": "correct horse battery", "MAX_LOG_MB": "1"}
    output: list[str] = []
    attempt = world.attempt(
        20 + status,
        run=ThisRun(f"run-{20 + status}"),
        settings={**world.script(f"flood{status}", text), **settings},
        write=output.append,
    )
    instance = provisioned(attempt)
    if status:
        with pytest.raises(TrainingFailed, match=r"\*\*\*\*"):
            attempt.train()
    else:
        attempt.train()
        attempt.terminate()
    seen = "".join(output)
    assert len(seen) < 1_001_000
    assert seen.startswith("000000000\n")
    assert seen.endswith("\nit is ****\n")
    assert " MB of output left out here (MAX_LOG_MB=1)" in seen
    run = world.mlflow.run(instance.mlflow_run)
    place = f"/api/2.0/mlflow-artifacts/artifacts/{run.experiment_id}/{run.id}/artifacts/orchestrator/output.log.gz"
    kept = gzip.decompress(requests.get(world.mlflow_server.url + place, timeout=30).content).decode().splitlines()
    assert kept == [*(f"{number:09d}" for number in range(300_000)), "it is ****"]


@pytest.mark.services
def test_a_training_past_its_deadline_is_ended(world: World) -> None:
    program = world.script("forever", "#!/bin/sh\necho begun\nexec sleep 600\n")
    attempt = world.attempt(7, run=ThisRun("run-7"), settings=program, config=TrainingConfig(max_minutes=0.05))
    instance = provisioned(attempt)
    with pytest.raises(TrainingTimedOut, match="MAX_TRAINING_MINUTES"):
        attempt.train()
    assert gone(world, instance.id)
    assert world.mlflow.run(instance.mlflow_run).status == "FAILED"


def test_an_interrupt_in_mid_training_gives_the_instance_back_and_closes_the_mlflow_run(world: World) -> None:
    program = world.script("endless", "#!/bin/sh\necho begun\nexec sleep 600\n")

    def cancel(_: str) -> None:
        raise KeyboardInterrupt

    attempt = world.attempt(8, run=ThisRun("run-8"), settings=program, write=cancel)
    instance = provisioned(attempt)
    with pytest.raises(KeyboardInterrupt):
        attempt.train()
    assert gone(world, instance.id)
    assert world.mlflow.run(instance.mlflow_run).status == "KILLED"


def test_a_run_that_ends_between_two_steps_leaves_nothing_either(world: World) -> None:
    attempt = world.attempt(9, run=ThisRun("run-9"))
    instance = provisioned(attempt)
    attempt.close()
    assert gone(world, instance.id)
    assert world.mlflow.run(instance.mlflow_run).status == "KILLED"


@pytest.mark.services
def test_an_instance_that_is_taken_away_in_mid_training_is_named_as_the_reason(world: World) -> None:
    program = world.script("endless", "#!/bin/sh\necho begun\nexec sleep 600\n")
    instances: list[str] = []
    attempt = world.attempt(
        10,
        run=ThisRun("run-10"),
        settings={**program, "INSTANCE_LOSSES": "0"},
        write=lambda _: world.ec2_server.terminate_from_outside(instances[0]),
    )
    instances.append(provisioned(attempt).id)
    with pytest.raises(InstanceLost, match=instances[0]):
        attempt.train()
    assert gone(world, instances[0])


@pytest.mark.services
def test_a_training_whose_instance_is_taken_away_begins_anew_on_another(world: World, tmp_path: Path) -> None:
    program = world.script("second-time", f"#!/bin/sh\necho begun\n[ -e {tmp_path}/again ] || exec sleep 600\n")
    instances: list[str] = []

    def take_it_away(_: str) -> None:
        if not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            world.ec2_server.terminate_from_outside(instances[0])

    attempt = world.attempt(18, run=ThisRun("run-18"), settings=program, write=take_it_away)
    first = provisioned(attempt)
    instances.append(first.id)
    trained = attempt.train()
    usage = attempt.terminate()
    assert usage is not None
    assert usage.instance_id != first.id
    assert gone(world, usage.instance_id)
    assert trained != first.mlflow_run, "the curves of two trainings are not mixed"
    assert world.mlflow.run(first.mlflow_run).status == "KILLED"
    assert attempt.finished().run.status == "FINISHED"


def test_a_live_attempt_renews_its_lease_on_the_instance(world: World) -> None:
    attempt = world.attempt(19, run=ThisRun("run-19"))
    instance = provisioned(attempt)
    attempt.renew_lease()
    renewed = world.ec2.describe(instance.id).lease_until
    assert renewed is not None
    assert renewed > datetime.now(UTC)
    attempt.close()


@pytest.mark.services
def test_an_attempt_that_was_taken_for_dead_leaves_the_instance_to_its_successor(world: World) -> None:
    program = world.script("quick", "#!/bin/sh\nexit 0\n")
    frozen = world.attempt(20, run=ThisRun("run-20a", live={"run-20b"}), settings=program)
    instance = provisioned(frozen)
    successor = world.attempt(20, run=ThisRun("run-20b", root_run_id="run-20a"), settings=program)
    assert provisioned(successor).id == instance.id

    with pytest.raises(BuildBusy, match="run-20b"):
        frozen.terminate()
    frozen.close()
    assert world.ec2.describe(instance.id).alive
    assert successor.train() == instance.mlflow_run
    successor.terminate()
    assert gone(world, instance.id)


def test_a_retry_of_a_run_that_died_after_its_training_only_records(world: World) -> None:
    program = world.script("quick", "#!/bin/sh\nexit 0\n")
    dead = world.attempt(21, run=ThisRun("run-21a"), settings=program)
    trained = dead.train()
    dead.terminate()
    dead.finished()

    retry = world.attempt(21, run=ThisRun("run-21b", "run-21a", trained_before=trained), settings=program)
    assert retry.provision() is None
    assert retry.train() == trained
    assert retry.terminate() is None
    finished = retry.finished()
    assert finished.run.id == trained
    assert finished.usage is not None
    retry.close()


@pytest.mark.services
def test_launching_a_trained_build_again_by_hand_trains_it_again(world: World) -> None:
    program = world.script("quick", "#!/bin/sh\nexit 0\n")
    first = world.attempt(22, run=ThisRun("run-22a"), settings=program)
    second = world.attempt(22, run=ThisRun("run-22b"), settings=program)
    assert first.train() != (first.terminate() and second.train())
    second.terminate()


@pytest.mark.services
def test_an_mlflow_that_is_away_at_the_end_is_waited_for_and_then_named_with_what_to_do(world: World) -> None:
    program = world.script("quick", "#!/bin/sh\nexit 0\n")
    with FaultyProxy(world.mlflow_server.url) as mlflow:
        away = {"MLFLOW_TRACKING_URI": mlflow.url, "MLFLOW_PATIENCE_MINUTES": "0.02"}
        attempt = world.attempt(23, run=ThisRun("run-23"), settings={**program, **away})
        trained = attempt.train()
        mlflow.standing = HUNG_UP
        attempt.terminate()
        with pytest.raises(MlflowUnavailable, match=rf"{trained}.*re-execute"):
            attempt.finished()
        attempt.close()
    later = world.attempt(23, run=ThisRun("run-23b", "run-23", trained_before=trained), settings=program)
    assert later.provision() is None, "nothing is trained again"
    assert later.finished().run.id == trained
    assert later.finished().run.status == "FINISHED"
    later.close()


def test_the_next_attempt_takes_over_what_a_dead_one_left(world: World) -> None:
    program = world.script("quick", "#!/bin/sh\nexit 0\n")
    dead = world.attempt(11, run=ThisRun("run-11a"), settings=program)
    left = provisioned(dead)

    attempt = world.attempt(11, run=ThisRun("run-11b", root_run_id="run-11a"), settings=program)
    instance = provisioned(attempt)
    assert instance.id == left.id
    assert instance.dagster_run == "run-11b"
    assert instance.power_off_at == left.power_off_at, "the machine's own deadline does not move"
    assert attempt.train() == left.mlflow_run
    attempt.terminate()
    assert gone(world, left.id)

    again = world.attempt(11, run=ThisRun("run-11c", "run-11a", trained_before=left.mlflow_run), settings=program)
    assert again.finished().run.id == left.mlflow_run, "a re-execution of the last step trains nothing"


def test_an_instance_of_another_request_is_not_taken_over(world: World) -> None:
    left = provisioned(world.attempt(12, run=ThisRun("run-12a")))
    attempt = world.attempt(12, run=ThisRun("run-12b"), config=TrainingConfig(parameters={"note": "other"}))
    instance = provisioned(attempt)
    assert instance.id != left.id
    assert gone(world, left.id)
    attempt.close()


@pytest.mark.services
def test_a_build_that_a_live_run_trains_is_left_to_it(world: World) -> None:
    first = world.attempt(13, run=ThisRun("run-13a"))
    instance = provisioned(first)
    second = world.attempt(13, run=ThisRun("run-13b", live={"run-13a"}))
    with pytest.raises(BuildBusy, match="run-13a"):
        second.provision()
    second.close()
    assert world.ec2.describe(instance.id).alive
    first.close()


@pytest.mark.services
def test_an_instance_of_a_run_that_dagster_does_not_know_is_left_to_it_while_its_lease_lasts(world: World) -> None:
    others = provisioned(world.attempt(24, run=ThisRun("run-24a")))
    attempt = world.attempt(24, run=ThisRun("run-24b", "run-24a", unknown={"run-24a"}))
    with pytest.raises(BuildBusy, match="run-24a"):
        attempt.provision()
    attempt.close()
    assert world.ec2.describe(others.id).alive

    world.ec2.tag(others.id, {Ec2Tag.LEASE_UNTIL: timestamp(datetime.now(UTC) - timedelta(seconds=1))})
    later = world.attempt(24, run=ThisRun("run-24c", unknown={"run-24a"}))
    assert provisioned(later).id != others.id, "nothing but its own tags says whose it is"
    later.close()
    assert world.ec2.describe(others.id).alive, "it is left to its deadline"
    world.ec2.terminate(others.id)


@pytest.mark.services
def test_a_retry_waits_longer_for_mlflow_than_a_run_that_has_nothing_to_lose(world: World) -> None:
    with FaultyProxy(world.mlflow_server.url) as mlflow, ThreadPoolExecutor() as threads:
        away = {"MLFLOW_TRACKING_URI": mlflow.url, "MLFLOW_PATIENCE_MINUTES": "1"}
        mlflow.standing = HUNG_UP
        retry = world.attempt(25, run=ThisRun("run-25b", root_run_id="run-25a"), settings=away)
        checked = threads.submit(retry.check)
        until(lambda: mlflow.seen)
        with pytest.raises(MlflowUnavailable):
            world.attempt(25, run=ThisRun("run-25c"), settings=away).check()
        mlflow.standing = None
        assert checked.result(60).partition == "25"


def test_of_two_runs_that_begin_together_the_later_gives_way(world: World) -> None:
    attempt = world.attempt(14, run=ThisRun("run-14b", before_us="run-14a"))
    with pytest.raises(BuildBusy, match="run-14a"):
        attempt.provision()
    assert world.ec2.find(pipeline="tiny", partition="14") is None


def test_a_missing_experiment_is_named_before_anything_is_launched(world: World) -> None:
    attempt = world.attempt(15, run=ThisRun("run-15"), settings={"MLFLOW_EXPERIMENT_ID": "777"})
    with pytest.raises(MlflowNotFound, match=r"no experiment with ID 777 .*MLFLOW_EXPERIMENT_ID"):
        attempt.check()


def test_a_missing_known_hosts_file_is_named_before_anything_is_launched(world: World, tmp_path: Path) -> None:
    strict = {"SSH_HOST_KEYS": "known_hosts", "SSH_KNOWN_HOSTS": str(tmp_path / "none")}
    with pytest.raises(SshError, match="SSH_KNOWN_HOSTS"):
        world.attempt(26, run=ThisRun("run-26"), settings=strict).check()


@pytest.mark.parametrize("content", [b"\0DER", b"\x30\x82\x00\x01"])
def test_a_ca_that_cannot_be_sent_is_named_before_anything_is_launched(
    world: World, tmp_path: Path, content: bytes
) -> None:
    ca = tmp_path / "ca.der"
    ca.write_bytes(content)
    settings = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(ca)}
    with pytest.raises(SettingsError, match=r"MLFLOW_TRACKING_SERVER_CERT_PATH: .*ca\.der is no PEM file"):
        world.attempt(27, run=ThisRun("run-27"), settings=settings).check()


def test_without_mlflow_nothing_is_launched(world: World) -> None:
    attempt = world.attempt(16, run=ThisRun("run-16"), settings={"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"})
    with pytest.raises(MlflowUnavailable):
        attempt.provision()
    assert world.ec2.find(pipeline="tiny", partition="16") is None


def test_the_key_file_is_checked_before_anything_is_launched(world: World, tmp_path: Path) -> None:
    attempt = world.attempt(17, run=ThisRun("run-17"), settings={"KEY_PATH": str(tmp_path / "absent.pem")})
    with pytest.raises(Exception, match="KEY_PATH"):
        attempt.check()


def test_an_entry_point_that_the_commit_lacks_is_named_before_anything_is_launched(world: World) -> None:
    attempt = world.attempt(18, run=ThisRun("run-18"), settings={"MLPROJECT_ENTRY_POINT": "fit"})
    with pytest.raises(SettingsError, match="has no entry point 'fit'"):
        attempt.check()
    assert world.ec2.find(pipeline="tiny", partition="18") is None
