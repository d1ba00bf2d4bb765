"""Where a variable's text comes from: the environment, `.env`, a secrets directory, in this order."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from orchestrator.errors import SettingsError

ENV_FILE = ".env"
"""In the folder that the process was started in, as Dagster has it."""

SECRETS_DIR = "ORCHESTRATOR_SECRETS_DIR"

AWS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_PROFILE",
    "AWS_CA_BUNDLE",
)
"""What boto3 reads from the environment by itself."""


class _Variables(BaseSettings):
    """Declares nothing: which variables there are is known when they are asked for."""

    model_config = SettingsConfigDict(case_sensitive=True, env_file_encoding="utf-8")


def lookup(name: str) -> str | None:
    """One variable; None when no source has it, empty when none has more than that.

    Raises:
        SettingsError: `.env` or a file of the secrets directory cannot be read.
    """
    return lookup_all([name])[name]


def lookup_all(names: Iterable[str], *, secrets_too: bool = True) -> Mapping[str, str | None]:
    """Several variables, with one look at `.env`. An empty variable hides none in a weaker source.

    Args:
        names: which.
        secrets_too: also those of the secrets directory.

    Raises:
        SettingsError: `.env` or a file of the secrets directory cannot be read.
    """
    sources: list[Callable[[str], str | None]] = [EnvSettingsSource(_Variables).env_vars.get, _env_file().get]
    directory = next((text for source in sources if (text := source(SECRETS_DIR))), None)
    if directory and secrets_too:
        sources.append(_secrets(Path(directory)))
    return {name: _strongest(name, sources) for name in names}


def _strongest(name: str, sources: Iterable[Callable[[str], str | None]]) -> str | None:
    texts = [text for source in sources if (text := source(name)) is not None]
    return next(filter(None, texts), "" if texts else None)


def hand_aws_to_boto3() -> None:
    """Put AWS_* of `.env` and the secrets directory into the environment, the one place where boto3 looks.

    Dagster's commands do so with `.env` only, and not for a code server that was started by itself.
    """
    for name, text in lookup_all(AWS).items():
        if text and not os.environ.get(name):
            os.environ[name] = text


def require_private_env_file() -> None:
    """Refuse a `.env` that other users of this machine may read or write, for it holds secrets.

    Raises:
        SettingsError: others may; says the chmod that mends it.
    """
    file = Path(ENV_FILE).absolute()
    try:
        status = file.stat()
    except OSError:
        return  # whoever reads it says what is wrong
    if fault := exposure(file, status):
        raise SettingsError(fault)


def exposure(file: Path, status: os.stat_result) -> str | None:
    """How other users of this machine may read or write a file of secrets, and the chmod that mends it; None: not.

    A file that Kubernetes has mounted is taken as it is: its mode is the manifest's, and no other user is there.
    """
    # A file of somebody else that we may read, such as root's with our group, is readable for its group on purpose.
    forbidden = 0o077 if status.st_uid == os.geteuid() else 0o027
    if not (stat.S_ISREG(status.st_mode) and status.st_mode & forbidden) or _is_mounted_by_kubernetes(file):
        return None
    return (
        f"{file} may be read or changed by other users of this machine (mode {stat.S_IMODE(status.st_mode):o}), "
        f"and it holds secrets; run `chmod {0o600 if forbidden == 0o077 else 0o640:o} {shlex.quote(str(file))}`"
    )


def _is_mounted_by_kubernetes(file: Path) -> bool:
    """Whether it came by a volume (a link through `..data`), or by its `subPath` (a mount of its own in a pod).

    Both as the kubelet makes them: https://pkg.go.dev/k8s.io/kubernetes/pkg/volume/util#AtomicWriter.
    """
    if file.is_symlink() and file.readlink().parts[:1] == ("..data",):
        return True
    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return False
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return any(line.split()[4] == str(file) for line in mounts)


def _env_file() -> Mapping[str, str | None]:
    try:
        return DotEnvSettingsSource(_Variables, env_file=ENV_FILE).env_vars
    except UnicodeDecodeError as error:
        raise SettingsError(f"{ENV_FILE} is not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise SettingsError(f"{ENV_FILE} cannot be read: {error.strerror}") from error


def _secrets(directory: Path) -> Callable[[str], str | None]:
    if not directory.is_dir():
        raise SettingsError(f"{SECRETS_DIR} names {directory}, which is no folder; correct it or take it out")
    source = SecretsSettingsSource(_Variables, secrets_dir=directory)

    def read(name: str) -> str | None:
        try:
            file = source.find_case_path(directory, name, case_sensitive=True)
            return file.read_text(encoding="utf-8").strip() if file and file.is_file() else None
        except UnicodeDecodeError as error:
            raise SettingsError(f"{directory / name} is not UTF-8 ({error.reason})") from None
        except OSError as error:
            raise SettingsError(f"{directory / name} cannot be read: {error.strerror}") from error

    return read
