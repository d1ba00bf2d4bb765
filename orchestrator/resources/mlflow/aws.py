"""MLflow behind AWS's own login: requests signed with Signature Version 4, and the ARNs of SageMaker's managed MLflow.

All as MLflow's own client does it with the packages requests-auth-aws-sigv4 and sagemaker-mlflow, which are not needed
here: https://github.com/aws/sagemaker-mlflow
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit

import boto3
import requests
import requests.auth
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from orchestrator.errors import SettingsError
from orchestrator.resources.http import HttpFault, Problem

_ARN = re.compile(
    r"arn:(?P<partition>aws|aws-us-gov):sagemaker:(?P<region>[a-z0-9-]+):\d{12}"
    r":(?P<kind>mlflow-tracking-server|mlflow-app)/[\w.-]+"
)
_CHUNK = 2**20

ENDPOINT_ACTIONS: Mapping[str, str] = {
    "artifacts/list": "ListArtifacts",
    "experiments/get": "GetExperiment",
    "experiments/get-by-name": "GetExperimentByName",
    "experiments/search": "SearchExperiments",
    "metrics/get-history": "GetMetricHistory",
    "model-versions/create": "CreateModelVersion",
    "model-versions/delete": "DeleteModelVersion",
    "model-versions/get": "GetModelVersion",
    "model-versions/search": "SearchModelVersions",
    "model-versions/set-tag": "SetModelVersionTag",
    "registered-models/alias": "SetRegisteredModelAlias",
    "registered-models/create": "CreateRegisteredModel",
    "registered-models/get": "GetRegisteredModel",
    "runs/create": "CreateRun",
    "runs/get": "GetRun",
    "runs/log-batch": "LogBatch",
    "runs/search": "SearchRuns",
    "runs/update": "UpdateRun",
}
"""Each endpoint that our client asks → what `sagemaker-mlflow` calls the permission for it.

https://docs.aws.amazon.com/service-authorization/latest/reference/list_sagemaker-mlflow.html
"""


class ManagedMlflowKind(StrEnum):
    """What SageMaker's managed MLflow comes as."""

    SERVER = "mlflow-tracking-server"
    APP = "mlflow-app"


@dataclass(frozen=True)
class SigningScope:
    """What requests are signed for.

    Attributes:
        service: the name of the service in the signature.
        region: of AWS.
        permission: what a refusal asks for, as one clause.
    """

    service: str
    region: str
    permission: str


@dataclass(frozen=True)
class ManagedMlflow:
    """SageMaker's managed MLflow: a tracking server, or an MLflow app.

    Attributes:
        kind: of SageMaker.
        uri: the address of its API.
        scope: what requests are signed for.
        headers: by which AWS finds it, because all of a region have one address.
    """

    kind: ManagedMlflowKind
    uri: str
    scope: SigningScope
    headers: Mapping[str, str] = field(hash=False)

    @classmethod
    def parse(cls, arn: str, *, setting: str) -> Self:
        """Read an ARN.

        Raises:
            SettingsError: it is another thing's, or of a part of AWS that has no managed MLflow.
        """
        found = _ARN.fullmatch(arn)
        if not found:
            raise SettingsError(
                f"{setting}={arn:.200} is not the ARN of SageMaker's managed MLflow: write one such as "
                "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/NAME (or :mlflow-app/app-ID), with "
                "partition aws or aws-us-gov, or the address of a server, http:// or https://"
            )
        region, kind = found["region"], ManagedMlflowKind(found["kind"])
        if kind is ManagedMlflowKind.APP:
            return cls(
                kind=kind,
                uri=f"https://mlflow.sagemaker.{region}.app.aws",
                scope=SigningScope(
                    "sagemaker", region, f"allow them sagemaker:CallMlflowAppApi and sagemaker-mlflow:* on {arn}"
                ),
                headers={"x-sm-mlflow-app-arn": arn},
            )
        return cls(
            kind=kind,
            uri=f"https://{region}.experiments.sagemaker.aws",
            scope=SigningScope("sagemaker-mlflow", region, f"allow them sagemaker-mlflow:* on {arn}"),
            headers={"x-mlflow-sm-tracking-server-arn": arn},
        )


def execute_api() -> SigningScope:
    """What MLFLOW_TRACKING_AWS_SIGV4 signs for: an API Gateway, in boto3's region, as for MLflow's own client.

    Raises:
        SettingsError: no region is set.
    """
    try:
        region = boto3.session.Session().region_name
    except BotoCoreError as error:
        raise SettingsError(f"MLFLOW_TRACKING_AWS_SIGV4: the AWS settings cannot be used ({error})") from error
    if not region:
        raise SettingsError("MLFLOW_TRACKING_AWS_SIGV4 needs to know the region: set AWS_DEFAULT_REGION")
    return SigningScope(
        "execute-api",
        region,
        "allow them execute-api:Invoke on that API, or set AWS_DEFAULT_REGION to the region it is in",
    )


class AwsSignature(requests.auth.AuthBase):
    """Signs each request with the credentials that boto3 finds, renewed when they expire.

    Only the headers that AWS looks at are signed, because proxies on the way change others.

    Args:
        scope: what is signed for.
    """

    def __init__(self, scope: SigningScope) -> None:
        self._scope = scope
        self._credentials: Credentials | None = None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the headers.

        Raises:
            HttpFault: there are no credentials, or none now.
        """
        url = request.url or ""
        path, mark, query = url.partition("?")
        # requests writes a blank as +, which AWS takes for a plus.
        request.url = url = f"{path}{mark}{query.replace('+', '%20')}"
        request.headers["X-Amz-Content-SHA256"] = _sha256(request.body)
        signed = AWSRequest(
            method=request.method,
            url=url,
            headers={name: text for name, text in request.headers.items() if _is_signed(name)},
        )
        SigV4Auth(self._current(url), self._scope.service, self._scope.region).add_auth(signed)
        request.headers.update(signed.headers.items())
        return request

    def _current(self, url: str) -> ReadOnlyCredentials:
        address = urlsplit(url)._replace(query="").geturl()
        try:
            if self._credentials is None:
                self._credentials = boto3.session.Session().get_credentials()
            if self._credentials is None:
                raise NoCredentialsError
            return self._credentials.get_frozen_credentials()
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
            raise HttpFault(Problem.NO_CREDENTIALS, address, detail=str(error)) from error
        except (BotoCoreError, ClientError) as error:
            raise HttpFault(Problem.CREDENTIALS_AWAY, address, detail=str(error)) from error


def _is_signed(header: str) -> bool:
    return header.lower().startswith("x-") or header.lower() == "content-type"


def _sha256(body: object) -> str:
    """Of a text, bytes, or a file from where it is read next."""
    if isinstance(body, str):
        body = body.encode()
    if body is None or isinstance(body, bytes):
        return hashlib.sha256(body or b"").hexdigest()
    digest = hashlib.sha256()
    position = body.tell()  # type: ignore[attr-defined]
    while chunk := body.read(_CHUNK):  # type: ignore[attr-defined]
        digest.update(chunk)
    body.seek(position)  # type: ignore[attr-defined]
    return digest.hexdigest()
