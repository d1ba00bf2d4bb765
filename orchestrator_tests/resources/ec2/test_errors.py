from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    CredentialRetrievalError,
    EndpointConnectionError,
    LoginRefreshRequired,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSLError,
    SSOTokenLoadError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)

from orchestrator.errors import (
    CapacityUnavailable,
    Ec2Error,
    InstanceLost,
    LaunchRefused,
    NotOffered,
    QuotaUsedUp,
)
from orchestrator.resources.ec2.client import Ec2
from orchestrator.resources.ec2.errors import EXPLANATIONS, explain, transient
from orchestrator.settings.groups import MachineSettings
from orchestrator_tests.support.ec2_account import aws_error

SETTINGS = MachineSettings.model_validate(
    {"ami": "ami-7", "key_pair": "my-key", "security_group": "sg-7", "subnets": "subnet-7,subnet-8"}
)


def explained(error: Exception) -> Ec2Error:
    return explain(error, doing="launch t3.medium", settings=SETTINGS, region="eu-west-1", refusal=LaunchRefused)


@pytest.mark.parametrize(
    ("code", "message", "kind", "words"),
    [
        ("InvalidAMIID.NotFound", "", LaunchRefused, ["ami-7", "eu-west-1", "AMI_ID"]),
        ("InvalidAMIID.Malformed", "", LaunchRefused, ["AMI_ID"]),
        ("InvalidKeyPair.NotFound", "", LaunchRefused, ["my-key", "KEY_PAIR_NAME"]),
        ("InvalidGroup.NotFound", "", LaunchRefused, ["sg-7", "SECURITY_GROUP_ID"]),
        ("InvalidGroupId.Malformed", "", LaunchRefused, ["SECURITY_GROUP_ID"]),
        ("InvalidSubnetID.NotFound", "", LaunchRefused, ["subnet-7, subnet-8", "SUBNET_ID"]),
        ("VPCIdNotSpecified", "No default VPC for this user", LaunchRefused, ["SUBNET_ID"]),
        (
            "InvalidParameter",
            "Security group sg-7 and subnet subnet-7 belong to different networks.",
            LaunchRefused,
            ["SECURITY_GROUP_ID", "SUBNET_ID"],
        ),
        (
            "InvalidParameterValue",
            "Invalid value 't9.huge' for InstanceType.",
            LaunchRefused,
            ["t3.medium", "INSTANCE_TYPE"],
        ),
        (
            "InvalidParameterValue",
            "The architecture 'arm64' of the specified instance type does not match the architecture 'x86_64' of "
            "the specified AMI.",
            LaunchRefused,
            ["processor", "AMI_ID", "INSTANCE_TYPE"],
        ),
        (
            "InvalidParameterValue",
            "Value (x) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name",
            LaunchRefused,
            ["INSTANCE_PROFILE"],
        ),
        (
            "InvalidBlockDeviceMapping",
            "Volume of size 30GB is smaller than snapshot 'snap-1', expect size >= 75GB",
            LaunchRefused,
            ["ROOT_VOLUME_GB", "75GB"],
        ),
        # The table of the field report; each message is one that somebody posted.
        ("AuthFailure", "Not authorized for images: [ami-0abc]", LaunchRefused, ["ami-7", "eu-west-1", "AMI_ID"]),
        (
            "InvalidParameterCombination",
            "The specified instance type is not eligible for Free Tier. For a list of Free Tier instance types, run "
            "'describe-instance-types' with the filter 'free-tier-eligible=true'.",
            LaunchRefused,
            ["INSTANCE_TYPE=t3.small", "plan"],
        ),
        (
            "InvalidParameterCombination",
            "Enhanced networking with the Elastic Network Adapter (ENA) is required for the 't3.medium' instance type. "
            "Ensure that you are using an AMI that is enabled for ENA.",
            LaunchRefused,
            ["lacks ENA", "ami-7", "AMI_ID"],
        ),
        (
            "UnauthorizedOperation",
            "You are not authorized to perform this operation. User: arn:aws:sts::1:assumed-role/me is not authorized "
            "to perform: ec2:RunInstances on resource: arn:aws:ec2:us-east-1:1:instance/* with an explicit deny in a "
            "service control policy. Encoded authorization failure message: aGVsbG8gd29ybGQ",
            LaunchRefused,
            ["organization (SCP) forbids ec2:RunInstances"],
        ),
        ("ForbiddenException", "No access", LaunchRefused, ["`aws sso login`"]),
        ("UnauthorizedException", "Session token not found or invalid", LaunchRefused, ["`aws sso login`"]),
        (
            "AuthFailure",
            "AWS was not able to validate the provided access credentials",
            LaunchRefused,
            ["AWS_ACCESS_KEY_ID", "region eu-west-1 is enabled", "clock"],
        ),
        (
            "InvalidGroup.NotFound",
            "The security group 'sg-7' does not exist in VPC 'vpc-1'",
            LaunchRefused,
            ["belongs to another VPC", "SECURITY_GROUP_ID", "SUBNET_ID"],
        ),
        # More of the same kinds.
        (
            "InvalidGroup.NotFound",
            "The security group 'sg-7' does not exist in default VPC 'vpc-1'",
            LaunchRefused,
            ["belongs to another VPC", "default VPC"],
        ),
        (
            "InvalidParameterValue",
            "The instance type t2.micro does not support an AMI with the UEFI boot mode.",
            LaunchRefused,
            ["ami-7 cannot start on this instance type"],
        ),
        (
            "InvalidParameterCombination",
            "Network interfaces and an instance-level subnet ID may not be specified on the same request",
            LaunchRefused,
            ["do not go together"],
        ),
        (
            "UnauthorizedOperation",
            "User: u is not authorized to perform: ec2:CreateTags with an explicit deny in an identity-based policy",
            LaunchRefused,
            ["denies ec2:CreateTags explicitly"],
        ),
        (
            "AccessDenied",
            "User: u is not authorized to perform: ec2:RunInstances because no service control policy allows it",
            LaunchRefused,
            ["organization (SCP) forbids ec2:RunInstances"],
        ),
        (
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "The provided credentials do not have permission to create the service-linked role for EC2 Spot Instances.",
            LaunchRefused,
            ["AWSServiceRoleForEC2Spot", "INSTANCE_MARKET=on-demand"],
        ),
        (
            "UnauthorizedOperation",
            "You are not authorized.",
            LaunchRefused,
            ["ec2:RunInstances", "orchestrator iam-policy"],
        ),
        (
            "UnauthorizedOperation",
            "User: arn:aws:iam::1:user/me is not authorized to perform: iam:PassRole on resource: x. "
            "Encoded authorization failure message: aGVsbG8gd29ybGQ",
            LaunchRefused,
            ["iam:PassRole", "orchestrator iam-policy"],
        ),
        ("AuthFailure", "", LaunchRefused, ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]),
        ("SignatureDoesNotMatch", "", LaunchRefused, ["AWS_SECRET_ACCESS_KEY"]),
        ("InvalidClientTokenId", "", LaunchRefused, ["AWS_ACCESS_KEY_ID"]),
        ("ExpiredToken", "", LaunchRefused, ["expired", "AWS_SESSION_TOKEN"]),
        ("OptInRequired", "", LaunchRefused, ["not subscribed"]),
        ("PendingVerification", "", LaunchRefused, ["AWS Support"]),
        ("SomethingNew", "as AWS words it", LaunchRefused, ["SomethingNew: as AWS words it"]),
        ("InsufficientInstanceCapacity", "", CapacityUnavailable, ["INSTANCE_TYPE", "SUBNET_ID"]),
        ("InsufficientHostCapacity", "", CapacityUnavailable, ["capacity"]),
        ("SpotMaxPriceTooLow", "", CapacityUnavailable, ["INSTANCE_MARKET=spot,on-demand"]),
        ("VcpuLimitExceeded", "current vCPU limit of 50 allows", QuotaUsedUp, ["Service Quotas"]),
        ("VcpuLimitExceeded", "than your current vCPU limit of 0 allows", NotOffered, ["is 0", "Service Quotas"]),
        ("MaxSpotInstanceCountExceeded", "", QuotaUsedUp, ["INSTANCE_MARKET=spot,on-demand"]),
        ("InstanceLimitExceeded", "", QuotaUsedUp, ["Service Quotas"]),
        ("InsufficientFreeAddressesInSubnet", "", CapacityUnavailable, ["SUBNET_ID"]),
        ("Unsupported", "not supported in your requested Availability Zone", NotOffered, ["INSTANCE_TYPE"]),
        ("InvalidInstanceID.NotFound", "", InstanceLost, ["eu-west-1"]),
        ("OperationNotPermitted", "", Ec2Error, ["termination protection"]),
    ],
)
def test_each_of_awss_codes_becomes_a_sentence_with_what_to_change(
    code: str, message: str, kind: type[Ec2Error], words: list[str]
) -> None:
    error = explained(aws_error(code, message))
    assert type(error) is kind
    assert str(error).startswith("could not launch t3.medium: ")
    for word in (*words, code):
        assert word in str(error)
    assert "Encoded" not in str(error)


@pytest.mark.parametrize("line", EXPLANATIONS, ids=lambda line: line.code)
def test_every_sentence_names_only_what_there_is(line: Any) -> None:
    values = {**SETTINGS.model_dump(), "region": "r", "action": "a"}
    assert "{" not in line.sentence.format(**values)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoCredentialsError(), "AWS_ACCESS_KEY_ID"),
        (UnauthorizedSSOTokenError(), "`aws sso login`"),
        (SSOTokenLoadError(error_msg="Token for x does not exist"), "`aws sso login`"),
        (TokenRetrievalError(provider="sso", error_msg="Token has expired and refresh failed"), "`aws sso login`"),
        (CredentialRetrievalError(provider="sso", error_msg="x"), "`aws sso login`"),
        (CredentialRetrievalError(provider="custom-process", error_msg="vault: sealed"), "vault: sealed"),
        (LoginRefreshRequired(), "`aws login`"),
        (PartialCredentialsError(provider="env", cred_var="x"), "AWS_SECRET_ACCESS_KEY"),
        (ProfileNotFound(profile="p"), "AWS_PROFILE"),
        (NoRegionError(), "AWS_DEFAULT_REGION"),
        (SSLError(endpoint_url="https://ec2", error=OSError("x")), "AWS_CA_BUNDLE"),
        (EndpointConnectionError(endpoint_url="https://ec2"), "AWS_ENDPOINT_URL"),
        (ReadTimeoutError(endpoint_url="https://ec2"), "network"),
        (ParamValidationError(report="x"), "ParamValidationError"),
    ],
)
def test_without_an_answer_it_says_what_to_check(error: BotoCoreError, words: str) -> None:
    said = explained(error)
    assert words in str(said)
    assert (type(said) is Ec2Error) == transient(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (aws_error("RequestLimitExceeded", status=503), True),
        (aws_error("Throttling"), True),
        (aws_error("InternalError", status=500), True),
        (aws_error("503", status=503), True),
        (aws_error("TooManyRequests", status=429), True),
        (ConnectionClosedError(endpoint_url="https://ec2"), True),
        (aws_error("InsufficientInstanceCapacity", status=500), False),
        (aws_error("NotImplemented", status=501), False),
        (aws_error("AuthFailure", status=401), False),
        (SSLError(endpoint_url="https://ec2", error=OSError("x")), False),
        (ValueError("ours"), False),
    ],
)
def test_only_what_may_pass_by_itself_is_tried_again(error: Exception, expected: bool) -> None:
    assert transient(error) is expected


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (aws_error("RequestLimitExceeded", status=503), "limits the rate"),
        (aws_error("InternalError", status=500), "problem of its own"),
    ],
)
def test_what_never_passed_says_so(error: ClientError, words: str) -> None:
    said = explained(error)
    assert type(said) is Ec2Error
    assert words in str(said)


def test_a_long_message_is_cut() -> None:
    assert len(str(explained(aws_error("SomethingNew", "word " * 1000)))) < 400


def test_without_a_region_the_first_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(Ec2Error, match="AWS_DEFAULT_REGION"):
        Ec2(SETTINGS).find_all()
