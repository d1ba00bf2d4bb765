"""A SageMaker endpoint as target: a model and a configuration of their own for each release, and one update.

SageMaker itself starts the new instances beside the old ones and moves the requests over. What is in use is read from
the tags of the model in the endpoint's configuration: neither ever changes once it is made.
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_UpdateEndpoint.html
"""

from __future__ import annotations

import logging
import re
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import tenacity
from botocore.exceptions import ClientError, ReadTimeoutError

from orchestrator.errors import DeploymentFailed, TargetHeld, TargetUnavailable
from orchestrator.resources import retry
from orchestrator.resources.retry import RetryPolicy
from orchestrator.resources.targets.aws import CONFIG, FAULTS, error_code, explained
from orchestrator.resources.targets.host import EXAMPLE
from orchestrator.resources.targets.release import ModelFolder, Release, require_holder

_log = logging.getLogger(__name__)

IN_SERVICE = "InService"
_FAILED = ("Failed", "UpdateRollbackFailed")
_TAG = "orchestrator:"
_VARIANT = "model"


@dataclass(frozen=True, kw_only=True)
class SageMakerEndpoint:
    """An endpoint, and what its models run on.

    Attributes:
        endpoint: its name; made at the first deployment.
        image: URI of the image that serves MLflow models, such as `mlflow sagemaker build-and-push-container` makes.
        role: ARN of the role that the endpoint has.
        bucket: where models are put for SageMaker to fetch.
        prefix: where there, without a slash at either end.
        instance_type: of its instances.
        instance_count: how many there are.
    """

    endpoint: str
    image: str
    role: str
    bucket: str
    prefix: str
    instance_type: str = "ml.m5.large"
    instance_count: int = 1


def name_prefix(endpoint: str) -> str:
    """What the names of an endpoint's models and configurations begin with."""
    return endpoint[:25].rstrip("-")


@dataclass(frozen=True, kw_only=True)
class _Described:
    status: str
    config: str
    release: Release


class SageMakerTarget:
    """A SageMaker endpoint.

    Args:
        spec: which, and what it runs on.
        waiting: how long an update may take.
        client: makes boto3's client of a service.
    """

    def __init__(
        self,
        spec: SageMakerEndpoint,
        *,
        waiting: RetryPolicy = retry.SAGEMAKER_UPDATE,
        client: Callable[[str], Any] | None = None,
    ) -> None:
        self._spec = spec
        self._waiting = waiting
        self._make = client or (lambda service: boto3.session.Session().client(service, config=CONFIG))  # type: ignore[call-overload]

    @property
    def place(self) -> str:
        """The endpoint."""
        return f"SageMaker endpoint {self._spec.endpoint}"

    @cached_property
    def _client(self) -> Any:
        return self._make("sagemaker")

    def state(self) -> Release | None:
        """What the endpoint serves; see `Target`."""
        with explained(self.place):
            found = self._described()
        return found.release if found and found.status not in _FAILED else None

    def lost(self) -> Release | None:
        """Nothing: SageMaker itself keeps it in service; see `Target`."""
        return None

    def deploy(self, release: Release, model: ModelFolder, *, take_over: bool = False) -> Release | None:
        """Make model and configuration, update the endpoint, try a prediction; else go back. See `Target`."""
        with explained(self.place):
            before = self._described()
            require_holder(before.release if before else None, release.holder, place=self.place, take_over=take_over)
            if before and before.status not in (IN_SERVICE, *_FAILED):
                raise TargetUnavailable(f"{self.place} is {before.status} already")
            if before and before.status == IN_SERVICE and _is_same(release, before.release):
                return before.release
            name = self._new_name(release)
            self._create(name, release, self._upload(name, model))
            try:
                self._serve(name, before)
                self._predict(model)
            except DeploymentFailed as error:
                self._go_back(name, before)
                raise DeploymentFailed(f"{self.place} still serves what it did, because {error}") from error
            return before.release if before and before.status == IN_SERVICE else None

    def _described(self) -> _Described | None:
        found = self._endpoint()
        if found is None:
            return None
        config = self._client.describe_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
        names = [variant.get("ModelName", "") for variant in config["ProductionVariants"]]
        model = self._client.describe_model(ModelName=names[0])
        listed = self._client.list_tags(ResourceArn=model["ModelArn"])["Tags"]
        tags = {tag["Key"].removeprefix(_TAG): tag["Value"] for tag in listed if tag["Key"].startswith(_TAG)}
        if len(names) > 1 or not all(tags.get(key) for key in ("pipeline", "deployment", "version")):
            raise TargetHeld(f"{self.place} serves {', '.join(names)}, which the orchestrator has not made")
        fields = ("model", "version", "run_id", "build", "commit", "pipeline", "deployment", "deployed_at")
        release = Release(**{field: tags.get(field, "") for field in fields})
        return _Described(status=found["EndpointStatus"], config=found["EndpointConfigName"], release=release)

    def _endpoint(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._client.describe_endpoint(EndpointName=self._spec.endpoint)
        except ClientError as error:
            if error_code(error) == "ValidationException" and "Could not find" in str(error):
                return None
            raise
        return found

    def _new_name(self, release: Release) -> str:
        """Of model and configuration: letters, digits and hyphens, 63 at most."""
        version = re.sub(r"[^A-Za-z0-9]+", "-", release.version)[:20].strip("-")
        return f"{name_prefix(self._spec.endpoint)}-{version}-{datetime.now(UTC):%Y%m%d%H%M%S}"

    def _upload(self, name: str, model: ModelFolder) -> str:
        key = "/".join(filter(None, (self._spec.prefix, name, "model.tar.gz")))
        with tempfile.TemporaryDirectory(prefix="orchestrator-sagemaker-") as folder:
            archive = Path(folder) / "model.tar.gz"
            with tarfile.open(archive, "w:gz") as tar:
                for file in model.files:
                    tar.add(model.folder / file.path, arcname=file.path, recursive=False)
            self._make("s3").upload_file(str(archive), self._spec.bucket, key)
        return f"s3://{self._spec.bucket}/{key}"

    def _create(self, name: str, release: Release, data: str) -> None:
        spec = self._spec
        record = {key: re.sub(r"[^\w\s.:/=+@-]", "_", value)[:256] for key, value in asdict(release.now()).items()}
        tags = [{"Key": f"{_TAG}{key}", "Value": value} for key, value in record.items()]
        container = {"Image": spec.image, "ModelDataUrl": data}
        self._client.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=spec.role, Tags=tags)
        variant = {
            "VariantName": _VARIANT,
            "ModelName": name,
            "InstanceType": spec.instance_type,
            "InitialInstanceCount": spec.instance_count,
        }
        self._client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], Tags=tags)

    def _serve(self, config: str, before: _Described | None) -> None:
        """Let the endpoint have a configuration, and wait for it.

        Raises:
            DeploymentFailed: it does not get it.
            TargetUnavailable: it is not there in time.
        """
        names = {"EndpointName": self._spec.endpoint, "EndpointConfigName": config}
        if before and before.status == IN_SERVICE:
            self._client.update_endpoint(**names)
        else:
            if before:  # the only thing that AWS lets one do with an endpoint that failed
                self._client.delete_endpoint(EndpointName=self._spec.endpoint)
                self._await(lambda found: found is None)
            self._client.create_endpoint(**names)
        found = self._await(lambda found: found is not None and found["EndpointStatus"] in (IN_SERVICE, *_FAILED))
        if found is None or found["EndpointStatus"] != IN_SERVICE or found["EndpointConfigName"] != config:
            reason = (found or {}).get("FailureReason") or "SageMaker has gone back to the configuration before"
            raise DeploymentFailed(f"SageMaker could not start the new model: {reason}")

    def _await(self, done: Callable[[dict[str, Any] | None], bool]) -> dict[str, Any] | None:
        asking = self._waiting.polling(retry=tenacity.retry_if_result(lambda found: not done(found)))
        try:
            return asking(self._endpoint)
        except tenacity.RetryError as error:
            raise TargetUnavailable(
                f"{self.place} did not end its update within {self._waiting.total_seconds:g} s: see its page in AWS"
            ) from error

    def _predict(self, model: ModelFolder) -> None:
        example = model.read(EXAMPLE)
        if example is None:
            _log.warning(f"Tried no prediction: the model has no {EXAMPLE}; log it with an input example")
            return
        runtime = self._make("sagemaker-runtime")
        try:
            runtime.invoke_endpoint(EndpointName=self._spec.endpoint, ContentType="application/json", Body=example)
        except (ClientError, ReadTimeoutError) as error:
            raise DeploymentFailed(f"the new model does not predict for its own input example: {error}") from error

    def _go_back(self, config: str, before: _Described | None) -> None:
        """To the configuration before, unless SageMaker has done so; what was made for the new one is removed."""
        found = self._endpoint()
        if before and before.status == IN_SERVICE and (found is None or found["EndpointConfigName"] != before.config):
            now = (
                None
                if found is None
                else _Described(
                    status=found["EndpointStatus"], config=found["EndpointConfigName"], release=before.release
                )
            )
            self._serve(before.config, now)
        elif found is not None and found["EndpointConfigName"] == config:
            self._client.delete_endpoint(EndpointName=self._spec.endpoint)
            self._await(lambda found: found is None)
        try:
            self._client.delete_endpoint_config(EndpointConfigName=config)
            self._client.delete_model(ModelName=config)
        except FAULTS as error:
            _log.warning(f"Could not remove configuration and model {config} of {self.place}: {error}")


def _is_same(release: Release, other: Release) -> bool:
    return release.is_same_model(other) and release.holder == other.holder
