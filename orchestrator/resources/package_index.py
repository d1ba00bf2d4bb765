"""Whether a package index takes a login: found out for nothing, before an instance is paid for."""

from __future__ import annotations

import requests.auth

from orchestrator.errors import OrchestratorError
from orchestrator.resources import retry
from orchestrator.resources.http import Address, HttpClient, HttpRequest, HttpServer

_PAGE = HttpRequest(path="pip/", accepts=lambda _: True, largest_bytes=2**24)
"""The page of one package, whether there is one or not: that of all of them may be megabytes long."""


class _Anonymous(requests.auth.AuthBase):
    """No login: not the one either that requests would find in the netrc file of whoever runs us."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def rejected_login(url: str, *, user: str, password: str) -> int | None:
    """With which status an index rejects a login.

    Args:
        url: of the index, as pip takes it.
        user: the login's name.
        password: the login's password.

    Returns:
        401, or 403 where it asks whoever shows no login for one: else an address may be what it does not like. None: it
        takes the login, or cannot be asked from here, which says nothing of the instance.
    """
    status = _status(url, requests.auth.HTTPBasicAuth(user.encode(), password.encode()))
    if status == 401 or (status == 403 and _status(url, _Anonymous()) == 401):
        return status
    return None


def _status(url: str, auth: requests.auth.AuthBase) -> int | None:
    address = Address.parse(
        url, setting="PRIVATE_INDEX_URL", example="https://nexus.example.com/repository/pypi/simple"
    )
    server = HttpServer(address=address, setting="PRIVATE_INDEX_URL", auth=auth, ca_bundle=None, ca_setting="")
    client = HttpClient(server, policy=retry.PACKAGE_INDEX, explain=lambda fault: OrchestratorError(str(fault)))
    try:
        return client.send_once(_PAGE).status
    except OrchestratorError:
        return None
    finally:
        client.close()
