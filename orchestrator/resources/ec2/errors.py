"""AWS's error codes as plain sentences that name the setting to change.

The codes: https://docs.aws.amazon.com/ec2/latest/devguide/errors-overview.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    LoginError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from orchestrator.errors import CapacityUnavailable, Ec2Error, InstanceLost, NotOffered, QuotaUsedUp
from orchestrator.settings.groups import MachineSettings

AWS_ERRORS = (BotoCoreError, ClientError, ResponseParserError)

_THROTTLED = re.compile(r".*Throttl.*|RequestLimitExceeded|BandwidthLimitExceeded|SlowDown")
_BROKEN_FOR_NOW = re.compile(r"RequestTimeout.*|Internal(Error|Failure)|(Service)?Unavailable")


@dataclass(frozen=True)
class Explanation:
    """One line of the table: which errors it is for, and what to say.

    Attributes:
        code: regular expression for the whole of AWS's error code.
        sentence: what happened and what to do; `{name}` stands for a setting, `{region}` and `{action}`.
        error: what to raise; None: it depends on what was being done.
        message: regular expression that must occur in AWS's message, too.
    """

    code: str
    sentence: str
    error: type[Ec2Error] | None = None
    message: str = ""


_FORBIDDEN = r"UnauthorizedOperation|AccessDenied.*|UnauthorizedAccess|Client\.UnauthorizedOperation"
_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

# The first line that fits is taken.
EXPLANATIONS = (
    # Not now, not of this type, or not here: the next type, subnet or market may do.
    Explanation(
        r"InsufficientFreeAddressesInSubnet|InsufficientAddressCapacity",
        "the subnet has no free address: add another one to SUBNET_ID",
        CapacityUnavailable,
    ),
    Explanation(
        r"Insufficient.*Capacity.*|UnfulfillableCapacity",
        "AWS has no capacity left: add types to INSTANCE_TYPE or subnets to SUBNET_ID, or try later",
        CapacityUnavailable,
    ),
    Explanation(
        r"SpotMaxPriceTooLow",
        "no spot instance for us now: try later, or set INSTANCE_MARKET=spot,on-demand",
        CapacityUnavailable,
    ),
    Explanation(
        r"VcpuLimitExceeded|InstanceLimitExceeded|MaxSpotInstanceCountExceeded",
        "the account's quota for this kind of instance is 0: ask for one in AWS Service Quotas, or change "
        "INSTANCE_TYPE or INSTANCE_MARKET",
        NotOffered,
        message=r"limit of 0\b",
    ),
    Explanation(
        r"MaxSpotInstanceCountExceeded|MaxSpotFleetRequestCountExceeded",
        "the account's quota for spot instances is used up: raise it in AWS Service Quotas, run fewer trainings at "
        "once, or set INSTANCE_MARKET=spot,on-demand",
        QuotaUsedUp,
    ),
    Explanation(
        r"VcpuLimitExceeded|InstanceLimitExceeded|.*InstanceCountExceeded",
        "the account's quota for running instances is used up: raise it in AWS Service Quotas, run fewer "
        "trainings at once, or add types to INSTANCE_TYPE",
        QuotaUsedUp,
    ),
    Explanation(
        r"Unsupported|InvalidParameter.*|UnsupportedOperation",
        "the image {ami} is built for another processor than the instance type: change AMI_ID or INSTANCE_TYPE",
        message=r"[Aa]rchitecture",
    ),
    Explanation(
        r"Unsupported.*|InvalidParameter.*",
        "the image {ami} lacks ENA, which this instance type needs: set AMI_ID to a newer image, or INSTANCE_TYPE to "
        "an older type",
        message=r"\bENA\b|Elastic Network Adapter",
    ),
    Explanation(
        r"Unsupported.*|InvalidParameter.*",
        "the image {ami} cannot start on this instance type: change AMI_ID or INSTANCE_TYPE",
        message=r"(?i)NVMe|boot mode|UEFI|virtualization type",
    ),
    Explanation(
        r"Unsupported.*|InvalidParameter.*",
        "the account's free plan does not cover this instance type: set INSTANCE_TYPE=t3.small or another one that it "
        "covers, or upgrade the plan in the AWS console (Billing)",
        message=r"(?i)free[ -]tier",
    ),
    Explanation(
        r"Unsupported",
        "this instance type is not offered here: change INSTANCE_TYPE, or SUBNET_ID to one of another zone",
        NotOffered,
    ),
    # A setting is wrong.
    Explanation(
        r"InvalidAMIID\..*|InvalidAMI.*",
        "the image {ami} does not exist in {region}, or is not shared with this account: set AMI_ID",
    ),
    Explanation(
        r"InvalidKeyPair\..*|InvalidKey.*",
        "the key pair {key_pair} does not exist in {region}: set KEY_PAIR_NAME",
    ),
    Explanation(
        r"InvalidGroup.*|InvalidSecurityGroup.*",
        "the security group {security_group} is not in the VPC of the subnet (without SUBNET_ID: in the default VPC), "
        "so it belongs to another VPC or is gone: change SECURITY_GROUP_ID or SUBNET_ID",
        message=r"(?i)\bVPC\b",
    ),
    Explanation(
        r"InvalidGroup.*|InvalidSecurityGroup.*|InvalidPermission.*",
        "the security group {security_group} does not exist in {region}: set SECURITY_GROUP_ID",
    ),
    Explanation(
        r"InvalidParameter.*",
        "the security group {security_group} and the subnet belong to different networks: change "
        "SECURITY_GROUP_ID or SUBNET_ID",
        message=r"belong to different networks|different VPC",
    ),
    Explanation(r"InvalidSubnet.*", "the subnet {subnets} does not exist in {region}: set SUBNET_ID"),
    Explanation(
        r"VPCIdNotSpecified|DefaultVpcDoesNotExist|DefaultSubnet.*|MissingInput",
        "the account has no default network in {region}: set SUBNET_ID",
    ),
    Explanation(
        r"InvalidParameter.*|InvalidIamInstanceProfile.*|InvalidIAMInstanceProfile.*|NoSuchEntity",
        "the instance profile {instance_profile} cannot be used: set INSTANCE_PROFILE to the name or ARN of an "
        "instance profile (a role is not one)",
        message=r"(?i)instance ?profile",
    ),
    Explanation(
        r"InvalidInstanceType.*|InvalidParameterValue.*",
        "AWS knows no instance type {instance_types} in {region}: set INSTANCE_TYPE",
        message=r"(?i)instance[ -]?type",
    ),
    Explanation(
        r"InvalidBlockDeviceMapping.*|InvalidParameter.*",
        "the root volume cannot have this size: set ROOT_VOLUME_GB to what the image {ami} needs",
        message=r"(?i)volume ?size|volume of size|smaller than snapshot",
    ),
    Explanation(
        r"VolumeLimitExceeded|MaxIOPSLimitExceeded",
        "the account's quota for EBS volumes is used up: delete volumes, or raise it in AWS Service Quotas",
        QuotaUsedUp,
    ),
    Explanation(
        r"InvalidParameterCombination",
        "these settings do not go together: change INSTANCE_TYPE, AMI_ID, SUBNET_ID or INSTANCE_MARKET as AWS says",
    ),
    # Instances.
    Explanation(
        r"InvalidInstanceID.*",
        "AWS knows no such instance: it ended long ago, or belongs to another account or region than {region}",
        InstanceLost,
    ),
    Explanation(
        r"IdempotentParameterMismatch",
        "an instance was launched before under this attempt's token, and nothing says that it was by us: start the run "
        "again",
        InstanceLost,
    ),
    Explanation(
        r"OperationNotPermitted",
        "the instance is protected against termination, which we never ask for: switch its termination "
        "protection off, then terminate it in the EC2 console",
        Ec2Error,
    ),
    # Who we are, and what we may do.
    Explanation(
        _FORBIDDEN,
        "a policy of the AWS organization (SCP) forbids {action}, whatever this user or role is allowed; often it asks "
        "for a tag, an encryption key, a region or an instance type: ask who keeps it",
        message=r"(service|resource) control polic(y|ies)",
    ),
    Explanation(
        _FORBIDDEN,
        "a policy denies {action} explicitly, and allowing it elsewhere does not help: change that policy",
        message=r"explicit deny",
    ),
    Explanation(
        _FORBIDDEN,
        "the AWS user or role may not do this: allow it the action {action}; `orchestrator iam-policy` prints a policy "
        "with all that these settings need",
    ),
    Explanation(
        r"ExpiredToken.*|RequestExpired",
        "the AWS credentials have expired (or this machine's clock is wrong): renew AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    ),
    Explanation(
        r"AuthFailure",
        "the image {ami} is private, gone, or of another region than {region}: set AMI_ID, or have it shared with this "
        "account",
        message=r"(?i)not authorized for images?",
    ),
    Explanation(
        r"AuthFailure\.ServiceLinkedRole.*",
        "the account has no role AWSServiceRoleForEC2Spot, and we may not make it: run `aws iam "
        "create-service-linked-role --aws-service-name spot.amazonaws.com`, or set INSTANCE_MARKET=on-demand",
    ),
    Explanation(
        r"UnauthorizedException|ForbiddenException",
        "the AWS login (SSO) has expired, or does not give this role: run `aws sso login`, and check the profile that "
        "AWS_PROFILE names",
    ),
    Explanation(
        r"AuthFailure|InvalidClientTokenId|InvalidAccessKeyId|SignatureDoesNotMatch|IncompleteSignature"
        r"|UnrecognizedClient.*|MissingAuthenticationToken|InvalidSecurity",
        f"AWS rejected the credentials: {_KEYS}, that the region {{region}} is enabled for the account, and that this "
        "machine's clock is right",
    ),
    Explanation(
        r"OptInRequired",
        "the account is not subscribed to this service, region or Marketplace image: accept its terms in the AWS "
        "console, or change AMI_ID or AWS_DEFAULT_REGION",
    ),
    Explanation(
        r"Blocked|PendingVerification",
        "AWS has blocked the account, or still verifies it: look for AWS's mails, or ask AWS Support",
    ),
)

_LOGIN_EXPIRED = "the AWS login (SSO) has expired: run `aws sso login` for the profile that AWS_PROFILE names"

_WITHOUT_ANSWER: tuple[tuple[type[BotoCoreError], str], ...] = (
    (NoCredentialsError, "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (PartialCredentialsError, f"the AWS credentials are not complete: {_KEYS}"),
    (SSOError, _LOGIN_EXPIRED),
    (TokenRetrievalError, _LOGIN_EXPIRED),
    (LoginError, "the AWS login has expired: run `aws login` for the profile that AWS_PROFILE names"),
    (
        CredentialRetrievalError,
        "the AWS credentials could not be fetched: if they come from SSO, run `aws sso login`; else check what the "
        "profile that AWS_PROFILE names gets them from",
    ),
    (ProfileNotFound, "there is no such AWS profile: correct AWS_PROFILE, or unset it"),
    (NoRegionError, "no AWS region: set AWS_DEFAULT_REGION, for example to eu-central-1"),
    (SSLError, "the TLS certificate of AWS was not accepted: check AWS_ENDPOINT_URL and AWS_CA_BUNDLE"),
    (
        EndpointConnectionError,
        "AWS cannot be reached: check the network, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL",
    ),
    (ConnectionError, "AWS cannot be reached: check the network and AWS_ENDPOINT_URL"),
    (HTTPClientError, "the connection to AWS broke: check the network and AWS_ENDPOINT_URL"),
)


def error_code(error: BaseException) -> str:
    """AWS's error code; empty when AWS did not answer."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def transient(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment: no connection, throttled, or AWS's own fault.

    That AWS has no capacity also comes with a status of 500, and is not transient in this sense.
    """
    if isinstance(error, ClientError):
        code = error_code(error)
        explanation = _explanation(error)
        if explanation and explanation.error and issubclass(explanation.error, CapacityUnavailable):
            return False
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status == 501:
            return False
        return bool(status >= 500 or status == 429 or _THROTTLED.fullmatch(code) or _BROKEN_FOR_NOW.fullmatch(code))
    return isinstance(error, ConnectionError | HTTPClientError | ResponseParserError) and not isinstance(
        error, SSLError
    )


def explain(
    error: Exception,
    *,
    doing: str,
    settings: MachineSettings,
    region: str,
    refusal: type[Ec2Error] = Ec2Error,
) -> Ec2Error:
    """Turn what boto3 raised into an error that a stranger understands.

    Args:
        error: one of `AWS_ERRORS`.
        doing: what was tried, such as "launch an instance".
        settings: the values to name.
        region: the AWS region that was asked.
        refusal: the class of an error that another try would not change.

    Returns:
        The error to raise: CapacityUnavailable or one of its kinds, LaunchRefused, InstanceLost or Ec2Error.
    """
    if not isinstance(error, ClientError):
        sentence = next(
            (words for kind, words in _WITHOUT_ANSWER if isinstance(error, kind)),
            f"{type(error).__name__}: check AWS_ENDPOINT_URL and the AWS settings",
        )
        kind = Ec2Error if transient(error) else refusal
        return kind(f"could not {doing}: {sentence} ({_short(str(error))})")
    code, message = error_code(error), str(error.response.get("Error", {}).get("Message", ""))
    asked = f"AWS says {code}: {_short(message)}"
    if transient(error):
        cause = "AWS limits the rate of our calls" if _THROTTLED.fullmatch(code) else "AWS has a problem of its own"
        return Ec2Error(f"could not {doing}: {cause}, after many tries; run it again later ({asked})")
    explanation = _explanation(error)
    if explanation is None:
        return refusal(f"could not {doing}: {asked}")
    named = re.search(r"not authorized to perform:? ?([a-z0-9-]+:\w+)", message)
    values = {
        key: ", ".join(value) if isinstance(value, tuple) else value for key, value in settings.model_dump().items()
    }
    sentence = explanation.sentence.format(
        **values, region=region, action=named[1] if named else f"ec2:{error.operation_name}"
    )
    return (explanation.error or refusal)(f"could not {doing}: {sentence} ({asked})")


def _explanation(error: ClientError) -> Explanation | None:
    message = str(error.response.get("Error", {}).get("Message", ""))
    return next(
        (
            line
            for line in EXPLANATIONS
            if re.fullmatch(line.code, error_code(error)) and re.search(line.message, message)
        ),
        None,
    )


def _short(message: str) -> str:
    """AWS's words without the encoded details, which nobody can read, and not too many of them."""
    plain = " ".join(re.sub(r"\s*Encoded authorization failure message:.*", "", message, flags=re.DOTALL).split())
    return plain.rstrip(".") if len(plain) <= 300 else plain[:300] + "..."
