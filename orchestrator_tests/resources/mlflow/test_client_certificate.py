"""MLflow servers that ask their clients for a certificate, over real TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from orchestrator.errors import MlflowError, MlflowRefused, SettingsError
from orchestrator.resources.http import Problem
from orchestrator.resources.http.problems import fault_of
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.proxy import FaultyProxy, ProxyFault
from orchestrator_tests.support.client_certificates import Authority
from orchestrator_tests.support.mlflow_client import client


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def server(upstream: MlflowServer, authority: Authority) -> FaultyProxy:
    return FaultyProxy(upstream.url, certificate=authority.issue("server"), client_ca=authority.file)


def test_the_certificate_is_shown_to_a_server_that_asks_for_it(
    mlflow_server: MlflowServer, authority: Authority
) -> None:
    with (
        server(mlflow_server, authority) as proxy,
        client(proxy.url, ca_bundle=authority.file, client_certificate=authority.issue("ours")) as mlflow,
    ):
        assert mlflow.experiment("0").name == "Default"


@pytest.mark.parametrize("shown", ["none", "of another authority"])
def test_a_server_that_refuses_ours_or_misses_one_names_the_setting(
    mlflow_server: MlflowServer, authority: Authority, tmp_path: Path, shown: str
) -> None:
    other = None if shown == "none" else Authority(tmp_path, "other").issue("theirs")
    with (
        server(mlflow_server, authority) as proxy,
        client(proxy.url, ca_bundle=authority.file, client_certificate=other) as mlflow,
        pytest.raises(MlflowRefused, match="ends the connection") as error,
    ):
        mlflow.experiment("0")
    assert "set MLFLOW_TRACKING_CLIENT_CERT_PATH to a PEM file with one that it accepts" in str(error.value)


@pytest.mark.parametrize(
    "reason",
    [
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "TLSV1_ALERT_UNKNOWN_CA",
    ],
)
def test_what_tls_says_of_a_certificate_is_known(reason: str) -> None:
    cause = ssl.SSLError(1, f"[SSL: {reason}] some words (_ssl.c:2580)")
    cause.reason = reason
    error = requests.exceptions.SSLError()
    error.__cause__ = cause
    fault = fault_of(error, "https://m/")
    assert fault.problem is Problem.CLIENT_CERTIFICATE
    assert not fault.problem.transient
    assert fault.detail == reason.replace("_", " ").lower()


@pytest.mark.parametrize("words", ["No required SSL certificate was sent", "The SSL certificate error"])
def test_nginx_says_so_with_a_page(words: str) -> None:
    page = ProxyFault(status=400, body=f"<html><head><title>400 {words}</title></head></html>")
    with FaultyProxy() as proxy, client(proxy.url) as mlflow:
        proxy.standing = page
        with pytest.raises(MlflowError, match="set MLFLOW_TRACKING_CLIENT_CERT_PATH"):
            mlflow.experiment("0")


def without_key(authority: Authority) -> Path:
    return authority.file


def without_certificate(authority: Authority) -> Path:
    return cut(authority, "-----BEGIN PRIVATE KEY", "end")


def of_another_key(authority: Authority) -> Path:
    one, other = authority.issue("one").read_text(), authority.issue("two").read_text()
    file = authority.file.with_name("mixed.pem")
    file.write_text(one[: one.index("-----BEGIN PRIVATE")] + other[other.index("-----BEGIN PRIVATE") :])
    return file


def cut_off(authority: Authority) -> Path:
    return cut(authority, "-----BEGIN CERTIFICATE", "-----END PRIVATE")


def cut(authority: Authority, begin: str, end: str) -> Path:
    text = authority.issue("cut").read_text()
    file = authority.file.with_name("cut.pem")
    file.write_text(text[text.index(begin) : text.find(end)])
    return file


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda authority: authority.file.with_name("none.pem"), "cannot be read"),
        (lambda authority: authority.file.parent, "cannot be read"),
        (without_key, "holds no private key in PEM format"),
        (without_certificate, "holds no certificate in PEM format"),
        (lambda authority: Path("/dev/null"), "holds no certificate and no private key in PEM format"),
        (lambda authority: authority.issue("locked", passphrase="s3cret"), "is protected by a passphrase"),
        (lambda authority: authority.issue("old", days=-1), "has expired on"),
        (of_another_key, "the key is not that of the first certificate"),
        (cut_off, "holds no usable certificate and key"),
    ],
    ids=["none", "folder", "no key", "no certificate", "empty", "protected", "expired", "mixed", "cut off"],
)
def test_a_file_that_no_server_can_be_shown_is_named_before_anything_is_asked(
    authority: Authority, make: Callable[[Authority], Path], complaint: str
) -> None:
    with pytest.raises(SettingsError, match=f"MLFLOW_TRACKING_CLIENT_CERT_PATH: .*{complaint}"):
        client("https://127.0.0.1:1", client_certificate=make(authority))


@pytest.mark.parametrize("gone", ["ca_bundle", "client_certificate"])
def test_a_file_that_goes_while_we_run_is_named(mlflow_server: MlflowServer, authority: Authority, gone: str) -> None:
    ca, ours = authority.file, authority.issue("ours")
    with (
        server(mlflow_server, authority) as proxy,
        client(proxy.url, ca_bundle=ca, client_certificate=ours) as mlflow,
    ):
        (ca if gone == "ca_bundle" else ours).unlink()
        with pytest.raises(MlflowRefused, match=r"was not asked .*MLFLOW_TRACKING_CLIENT_CERT_PATH right"):
            mlflow.experiment("0")
