"""What deployments need: the prefixes in S3 and the SageMaker endpoints that pipelines name as targets."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.operate.iam_permission import Permission, Place, literal
from orchestrator.resources.targets import SageMakerEndpoint, TargetBlock
from orchestrator.resources.targets.declared import s3_parts
from orchestrator.resources.targets.sagemaker import name_prefix


def target_access(targets: Iterable[TargetBlock], place: Place) -> tuple[Permission, ...]:
    """The permissions with which models can be put into these targets, and nowhere else.

    Directories and inference hosts need none.

    Args:
        targets: of all pipelines.
        place: where SageMaker's endpoints are.
    """
    prefixes, endpoints = list[tuple[str, str]](), list[SageMakerEndpoint]()
    for target in targets:
        if target.s3 is not None:
            prefixes.append(s3_parts(target.s3))
        if target.sagemaker is not None:
            endpoints.append(target.sagemaker.spec())
    return (*_s3(prefixes, place), *_sagemaker(endpoints, place))


def _s3(prefixes: list[tuple[str, str]], place: Place) -> Iterable[Permission]:
    if not prefixes:
        return
    yield Permission(
        "TargetObjects",
        "models are put under these prefixes, and old releases removed",
        ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"],
        _each(_objects(place, bucket, prefix) for bucket, prefix in prefixes),
    )
    # Not below the prefix only: S3 says of an object that is not there yet that it is forbidden, unless whoever asks
    # may list the bucket, and it knows no prefix then.
    yield Permission(
        "TargetBuckets",
        "releases are listed, and a prefix without one is told from one that is forbidden",
        ["s3:ListBucket"],
        _each(f"arn:{place.partition}:s3:::{literal(bucket)}" for bucket, _ in prefixes),
    )


def _sagemaker(endpoints: list[SageMakerEndpoint], place: Place) -> Iterable[Permission]:
    if not endpoints:
        return

    def arns(kind: str, names: Iterable[str]) -> list[str]:
        # SageMaker writes names into ARNs in lower case.
        spelt = _each(spelling for name in names for spelling in (name, name.lower()))
        return [f"arn:{place.partition}:sagemaker:{place.region}:{place.account}:{kind}/{name}" for name in spelt]

    served = arns("endpoint", (literal(spec.endpoint) for spec in endpoints))
    ours = [f"{literal(name_prefix(spec.endpoint))}-*" for spec in endpoints]
    configurations, models = arns("endpoint-config", ours), arns("model", ours)
    yield Permission(
        "Endpoint",
        "the endpoint is made, moved to another configuration, and asked for a prediction",
        [f"sagemaker:{verb}Endpoint" for verb in ("Create", "Delete", "Describe", "Invoke", "Update")],
        served,
    )
    yield Permission(
        "EndpointConfigurations",
        "each release has a configuration of its own, which an endpoint is made with or moved to",
        [
            *(f"sagemaker:{verb}Endpoint" for verb in ("Create", "Update")),
            *(f"sagemaker:{verb}EndpointConfig" for verb in ("Create", "Delete", "Describe")),
            "sagemaker:AddTags",
        ],
        configurations,
    )
    yield Permission(
        "EndpointModels",
        "each release is a model, whose tags say what it is",
        [*(f"sagemaker:{verb}Model" for verb in ("Create", "Delete", "Describe")), *_TAGS],
        models,
    )
    yield Permission(
        "EndpointRole",
        "SageMaker gives this role to the model's containers",
        ["iam:PassRole"],
        _each(literal(spec.role) for spec in endpoints),
        {"StringEquals": {"iam:PassedToService": ["sagemaker.amazonaws.com"]}},
    )
    yield Permission(
        "EndpointArchives",
        "SageMaker fetches the model's files from here",
        ["s3:AbortMultipartUpload", "s3:PutObject"],
        _each(_objects(place, spec.bucket, spec.prefix) for spec in endpoints),
    )


_TAGS = ("sagemaker:AddTags", "sagemaker:ListTags")


def _objects(place: Place, bucket: str, prefix: str) -> str:
    return f"arn:{place.partition}:s3:::{literal(bucket)}/{literal(prefix)}{'/' if prefix else ''}*"


def _each(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
