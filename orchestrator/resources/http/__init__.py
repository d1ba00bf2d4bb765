"""HTTP, the same for every server: whom to ask, how patiently, how much, and what the answer means."""

from orchestrator.resources.http.bounded import LARGEST_ANSWER
from orchestrator.resources.http.client import (
    Address,
    BearerToken,
    HttpClient,
    HttpRequest,
    HttpServer,
    IncompleteError,
    Method,
    Once,
)
from orchestrator.resources.http.client_certificate import read_client_certificate
from orchestrator.resources.http.problems import (
    HttpAnswer,
    HttpFault,
    JsonObject,
    Problem,
    redirect_target,
    retry_after,
)

__all__ = [
    "LARGEST_ANSWER",
    "Address",
    "BearerToken",
    "HttpAnswer",
    "HttpClient",
    "HttpFault",
    "HttpRequest",
    "HttpServer",
    "IncompleteError",
    "JsonObject",
    "Method",
    "Once",
    "Problem",
    "read_client_certificate",
    "redirect_target",
    "retry_after",
]
