"""Which MLflow server is meant, and how we show it who we are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import requests.auth

from orchestrator.errors import SettingsError
from orchestrator.resources.http import Address, BearerToken, HttpServer
from orchestrator.resources.mlflow.aws import AwsSignature, ManagedMlflow, SigningScope, execute_api
from orchestrator.settings.groups import MlflowSettings

WORKSPACE_HEADER = "X-MLFLOW-WORKSPACE"
"""https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/utils/workspace_utils.py"""


@dataclass(frozen=True, kw_only=True)
class TrackingServer:
    """One tracking server, as the settings describe it.

    Attributes:
        http: where it is, the login, the certificates.
        workspace: the workspace in it; empty: it has none.
        pages: where people find its pages; None: nowhere that is known.
        permission: what AWS's credentials lack when a signed request is refused; None: requests are not signed.
    """

    http: HttpServer
    workspace: str
    pages: str | None
    permission: str | None

    @classmethod
    def of(cls, settings: MlflowSettings) -> Self:
        """The server that the settings name.

        Raises:
            SettingsError: MLFLOW_TRACKING_URI, MLFLOW_WORKSPACE, MLFLOW_UI_URL or SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT is
                wrong, or no region is set to sign requests for.
        """
        _refuse_databricks(settings.tracking_uri)
        workspace = _workspace(settings)
        headers = {WORKSPACE_HEADER: workspace} if workspace else {}
        pages: str | None = None
        scope: SigningScope | None = None
        if settings.ui_url:
            example = "https://mlflow.example.com/mlflow"
            pages = Address.parse(settings.ui_url, setting="MLFLOW_UI_URL", example=example).uri
        if is_arn(settings.tracking_uri):
            managed = ManagedMlflow.parse(settings.tracking_uri.strip(), setting="MLFLOW_TRACKING_URI")
            address, setting = _endpoint(settings, managed)
            scope = managed.scope
            headers |= managed.headers
        else:
            setting = "MLFLOW_TRACKING_URI"
            address = Address.parse(
                settings.tracking_uri,
                setting=setting,
                example="http://mlflow.example.com:5000",
                why=": the training runs on another machine, which reaches no file or database of this one; "
                "start one with `mlflow server`",
            )
            if settings.aws_sigv4:
                scope = execute_api()
            pages = pages or address.uri
        server = HttpServer(
            address=address,
            setting=setting,
            auth=AwsSignature(scope) if scope else _login(settings, address),
            ca_bundle=settings.ca_bundle,
            ca_setting="MLFLOW_TRACKING_SERVER_CERT_PATH",
            client_certificate=settings.client_certificate,
            client_certificate_setting="MLFLOW_TRACKING_CLIENT_CERT_PATH",
            headers=headers,
        )
        return cls(http=server, workspace=workspace, pages=pages, permission=scope.permission if scope else None)


def is_arn(uri: str) -> bool:
    """Whether MLFLOW_TRACKING_URI names a thing of AWS instead of an address."""
    return uri.strip().lower().startswith("arn:")


def _endpoint(settings: MlflowSettings, managed: ManagedMlflow) -> tuple[Address, str]:
    """The address of a managed MLflow, and the setting that it comes from."""
    if not settings.sagemaker_endpoint:
        return Address(uri=managed.uri, username=None, password=None), "MLFLOW_TRACKING_URI"
    setting = "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT"
    return Address.parse(settings.sagemaker_endpoint, setting=setting, example=managed.uri), setting


def _refuse_databricks(uri: str) -> None:
    """Refuse what MLflow's own client takes, by other libraries, and ours does not.

    Raises:
        SettingsError: it is one of these.
    """
    scheme = uri.strip().partition(":")[0].lower()
    if scheme in ("databricks", "databricks-uc", "uc"):
        raise SettingsError(
            f"MLFLOW_TRACKING_URI is {scheme}, which needs the libraries of Databricks: set it to the address of the "
            "workspace, https://..., and MLFLOW_TRACKING_TOKEN to an access token"
        )


def _workspace(settings: MlflowSettings) -> str:
    name = (settings.workspace or "").strip()
    if name and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise SettingsError(
            f"MLFLOW_WORKSPACE: {name:.80} cannot be the name of a workspace, which has small letters, digits and "
            "hyphens only"
        )
    return name


def _login(settings: MlflowSettings, address: Address) -> requests.auth.AuthBase | None:
    """The login, in the order in which MLflow's own client looks for one."""
    username = settings.username or address.username
    password = settings.password.get_secret_value() if settings.password else address.password
    if username and password:
        # Bytes, because requests would encode text as Latin-1.
        return requests.auth.HTTPBasicAuth(username.encode(), password.encode())
    if settings.token:
        token = settings.token.get_secret_value().strip()
        if not token.isascii() or not token.isprintable():
            raise SettingsError("MLFLOW_TRACKING_TOKEN has characters in it that no token has: copy it once more")
        return BearerToken(token)
    return None
