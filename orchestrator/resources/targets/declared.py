"""A target as a defs.yaml or the command line names it; what cannot be meant is refused before anything is done."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import SettingsError
from orchestrator.resources.targets.directory import DirectoryTarget
from orchestrator.resources.targets.host import SERVE, HostTarget, InferenceHost
from orchestrator.resources.targets.release import KEPT_RELEASES, Target
from orchestrator.resources.targets.s3 import S3Target
from orchestrator.resources.targets.sagemaker import SageMakerEndpoint, SageMakerTarget

_EXAMPLES = (
    "{directory: /srv/models/churn}, {s3: s3://bucket/churn}, {host: {address: …, user: …, host_key: …, key_path: …, "
    "admin_socket: …, backend: …}} or {sagemaker: {endpoint: …, …}}"
)

_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(/(?P<prefix>[A-Za-z0-9!_.*'()/-]*))?")


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path} is no absolute path; write for example /srv/models/churn")
    return path


def _s3_address(text: str) -> str:
    if not _S3.fullmatch(text) or ".." in text or "//" in text.removeprefix("s3://"):
        raise ValueError(f"{text!r} is no prefix in S3: write for example s3://bucket/churn")
    return text.rstrip("/")


def s3_parts(address: str) -> tuple[str, str]:
    """Bucket and prefix of an address in S3, the prefix without a slash at either end."""
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/")


def _public_key(text: str) -> str:
    words = text.split()
    try:
        if len(words) < 2 or not base64.b64decode(words[1], validate=True):
            raise ValueError
    except (ValueError, binascii.Error):
        raise ValueError(
            "is no public host key: write `ssh-ed25519 AAAA…`, as the host's /etc/ssh/ssh_host_ed25519_key.pub has it"
        ) from None
    return " ".join(words[:2])


def _word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,100}", text):
        raise ValueError(f"{text!r} cannot be the name of a backend of HAProxy")
    return text


def _serves(text: str) -> str:
    if missing := [word for word in ("{model}", "{port}") if word not in text]:
        raise ValueError(f"it lacks {missing[0]}: write for example `{SERVE}`")
    return text


def _path(text: str) -> str:
    if text and (not text.startswith("/") or not text.isprintable() or " " in text):
        raise ValueError(f"{text!r} is no path of HTTP, such as /ping")
    return text


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HostBlock(_Block):
    """An inference host: HAProxy with two slots, reached over SSH."""

    address: str = Field(min_length=1, description="its name or IP address")
    user: str = Field(min_length=1, description="login, which may use `admin_socket`")
    port: int = Field(default=22, ge=1, le=65535, description="port of its SSH server")
    host_key: Annotated[str, AfterValidator(_public_key)] = Field(
        description="its public host key, `ssh-ed25519 AAAA…`; no other is accepted"
    )
    key_path: Path = Field(description="private key of the login, a file here")
    admin_socket: str = Field(min_length=1, description="HAProxy's stats socket there, of `level admin`")
    backend: Annotated[str, AfterValidator(_word)] = Field(description="HAProxy's backend, of two servers on loopback")
    serve: Annotated[str, AfterValidator(_serves)] = Field(
        default=SERVE, description="command that serves a model, with {model}, {host} and {port}"
    )
    directory: str = Field(default="", description="where releases are kept there; default: ~/.orchestrator/serving")
    health: Annotated[str, AfterValidator(_path)] = Field(
        default="/ping", min_length=1, description="path that answers 200 once the model can be used"
    )
    predict: Annotated[str, AfterValidator(_path)] = Field(
        default="/invocations", description="path that answers the model's input example; empty: none is asked"
    )
    python: str = Field(default="python3", min_length=1, description="Python 3.8 or newer there")
    start_seconds: float = Field(default=300, gt=0, le=3600, description="how long a model may take to be healthy")
    drain_seconds: float = Field(default=120, gt=0, le=3600, description="how long requests under way may take")


class SageMakerBlock(_Block):
    """A SageMaker endpoint, and what its models run on."""

    endpoint: str = Field(pattern=r"^[A-Za-z0-9](-*[A-Za-z0-9]){0,62}$", description="its name; made if there is none")
    image: str = Field(min_length=1, description="URI of the image that serves MLflow models")
    role: str = Field(pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/.+$", description="ARN of the endpoint's role")
    s3: Annotated[str, AfterValidator(_s3_address)] = Field(description="where models are put for SageMaker to fetch")
    instance_type: str = Field(default="ml.m5.large", pattern=r"^ml\.", description="of its instances")
    instance_count: int = Field(default=1, ge=1, le=1000, description="how many there are")

    def spec(self) -> SageMakerEndpoint:
        """The same, with its address in S3 taken apart."""
        bucket, prefix = s3_parts(self.s3)
        return SageMakerEndpoint(bucket=bucket, prefix=prefix, **self.model_dump(exclude={"s3"}))


class TargetBlock(_Block):
    """Where a model is put into use: one of these."""

    directory: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        default=None, description="a directory here, whose link `current` leads to the model"
    )
    s3: Annotated[str, AfterValidator(_s3_address)] | None = Field(
        default=None, description="a prefix in S3, whose `current.json` names the model: s3://bucket/prefix"
    )
    host: HostBlock | None = Field(default=None, description="an inference host with HAProxy")
    sagemaker: SageMakerBlock | None = Field(default=None, description="a SageMaker endpoint")
    keep: int = Field(default=KEPT_RELEASES, ge=2, le=1000, description="how many releases are kept there")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in type(self).model_fields if name != "keep" and getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a target is one of {_EXAMPLES}")
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one from JSON.

        Raises:
            SettingsError: it cannot be one.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            reason = str(first["msg"]).removeprefix("Value error, ")
            raise SettingsError(f"the target cannot be used: {where + ': ' if where else ''}{reason}") from None

    def open(self) -> Target:
        """The target; nothing is asked of it yet."""
        if self.directory is not None:
            return DirectoryTarget(self.directory, keep=self.keep)
        if self.s3 is not None:
            bucket, prefix = s3_parts(self.s3)
            return S3Target(bucket, prefix, keep=self.keep)
        if self.sagemaker is not None:
            return SageMakerTarget(self.sagemaker.spec())
        assert self.host is not None  # noqa: S101 - `_is_one` has seen to it
        return HostTarget(InferenceHost(**self.host.model_dump()), keep=self.keep)
