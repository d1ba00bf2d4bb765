"""What an MLflow that AWS stands before needs: SageMaker's managed one, or one behind an API Gateway."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from orchestrator.operate.iam_permission import Permission, Place, literal
from orchestrator.resources.mlflow.aws import ENDPOINT_ACTIONS, ManagedMlflow, ManagedMlflowKind
from orchestrator.settings.source import SettingsSource

API_ID = "API-ID"
"""Stands in the policy where an API's ID cannot be told from its address."""

METHODS = ("DELETE", "GET", "POST", "PUT")
"""Of HTTP, as our client uses them."""

_GATEWAY = re.compile(
    r"(?P<id>[a-z0-9]+)(-vpce-[a-z0-9]+)?\.execute-api\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?"
)
_YES = {"true", "1", "yes", "on", "t", "y"}
_TRAINING = (
    "the training asks MLflow itself: the role in INSTANCE_PROFILE needs a permission there, too, and more of it: "
    "docs/mlflow.md"
)


@dataclass(frozen=True)
class MlflowAccess:
    """What is needed, and what had to be assumed."""

    permissions: tuple[Permission, ...] = ()
    notes: tuple[str, ...] = ()


def mlflow_access(pipelines: Sequence[SettingsSource], place: Place) -> MlflowAccess:
    """The permissions with which our client can do what it does, on the servers of these pipelines and no other.

    Args:
        pipelines: their settings.
        place: where an API Gateway is that does not say so itself.

    Raises:
        SettingsError: MLFLOW_TRACKING_URI is an ARN of something else.
    """
    servers, apps, gateways = list[str](), list[str](), list[str]()
    notes: list[str] = []
    for pipeline in pipelines:
        uri = (pipeline.raw("MLFLOW_TRACKING_URI") or "").strip()
        if uri.startswith("arn:"):
            kind = ManagedMlflow.parse(uri, setting="MLFLOW_TRACKING_URI").kind
            (apps if kind is ManagedMlflowKind.APP else servers).append(literal(uri))
        elif (pipeline.raw("MLFLOW_TRACKING_AWS_SIGV4") or "").strip().lower() in _YES:
            found = _GATEWAY.fullmatch(urlsplit(uri).hostname or "")
            if not found:
                notes.append(f"{API_ID} stands for the ID of the API behind {urlsplit(uri).hostname}: write it instead")
            api, region = (found["id"], found["region"]) if found else (API_ID, place.region)
            gateways += [
                f"arn:{place.partition}:execute-api:{region}:{place.account}:{api}/*/{method}/*" for method in METHODS
            ]
    permissions = []
    if servers or apps:
        permissions.append(
            Permission(
                "Mlflow",
                "runs are recorded in this MLflow of SageMaker, and models in its registry",
                sorted({f"sagemaker-mlflow:{action}" for action in ENDPOINT_ACTIONS.values()}),
                _each(servers + apps),
            )
        )
    if apps:
        why = "an MLflow app asks for this one besides, which covers its whole API"
        permissions.append(Permission("MlflowApp", why, ["sagemaker:CallMlflowAppApi"], _each(apps)))
    if gateways:
        why = "MLflow is reached through this API Gateway, which lets signed requests in"
        permissions.append(Permission("MlflowGateway", why, ["execute-api:Invoke"], _each(gateways)))
    if permissions:
        notes.append(_TRAINING)
    return MlflowAccess(tuple(permissions), tuple(dict.fromkeys(notes)))


def _each(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
