"""Whether an instance of AWS can reach what the training needs, as far as addresses tell."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from orchestrator.errors import SettingsError
from orchestrator.resources.ec2.network import AWS_DOMAINS


def require_mlflow_in_reach(mlflow: str, *, ec2: str) -> None:
    """Refuse an MLflow on this very machine when the instance is another one.

    Args:
        mlflow: its address, as the training gets it.
        ec2: address of the EC2 API. One that is not AWS's own may have its instances anywhere, here too.

    Raises:
        SettingsError: the instance cannot reach it.
    """
    if _is_this_machine(mlflow) and (urlsplit(ec2).hostname or "").endswith(AWS_DOMAINS):
        raise SettingsError(
            f"An instance of AWS cannot reach {urlsplit(mlflow).hostname}, which is itself there: set "
            "MLFLOW_TRACKING_URI_ON_INSTANCE to the address by which the instance reaches MLflow, or move MLflow to a "
            "server"
        )


def _is_this_machine(address: str) -> bool:
    try:
        host = (urlsplit(address).hostname or "").rstrip(".")
        return host == "localhost" or host.endswith(".localhost") or _means_this_machine(host)
    except ValueError:
        return False


def _means_this_machine(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)
