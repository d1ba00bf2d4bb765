"""What MLflow's client says of servers that are away, that misbehave, or that are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import MlflowError, MlflowRefused, MlflowUnavailable, SettingsError
from orchestrator.resources.http import Address
from orchestrator.resources.mlflow import Run
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.proxy import HUNG_UP, STALLED, FaultyProxy, ProxyFault
from orchestrator_tests.support.mlflow_client import SHORT, client

HTML = ProxyFault(status=200, body="<html>maintenance</html>")
AT_ONCE = SHORT.with_total(0.1)
TIMES_OUT = replace(SHORT, total_seconds=0.5, answer_seconds=0.5)


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(mlflow_server.url) as running:
        yield running


class TestOutages:
    @pytest.mark.parametrize(
        "fault",
        [
            HUNG_UP,
            ProxyFault(status=429, body='{"error_code": "REQUEST_LIMIT_EXCEEDED"}', content_type="application/json"),
            ProxyFault(status=500, body='{"message": "database is locked"}', content_type="application/json"),
            ProxyFault(status=502, body="<html>bad gateway</html>"),
            HTML,
        ],
        ids=["hung up", "429", "500", "502", "a web page"],
    )
    def test_it_is_ridden_out(self, proxy: FaultyProxy, fault: ProxyFault) -> None:
        proxy.faults.extend([fault, fault])
        with client(proxy.url) as mlflow:
            assert mlflow.experiment("0").name == "Default"
        assert len(proxy.seen) == 3

    def test_a_server_that_says_nothing_is_given_up_on(self, proxy: FaultyProxy) -> None:
        proxy.standing = STALLED
        with (
            client(proxy.url, policy=TIMES_OUT) as mlflow,
            pytest.raises(MlflowUnavailable) as error,
        ):
            mlflow.experiment("1")
        assert str(error.value) == (
            f"MLflow at {proxy.url} does not answer (timed out); gave up after 0.5 s: "
            "see whether the server runs, and whether MLFLOW_TRACKING_URI is its address"
        )

    def test_a_server_that_is_away_is_said_to_be(self) -> None:
        with (
            client("http://127.0.0.1:1", policy=AT_ONCE) as mlflow,
            pytest.raises(MlflowUnavailable) as error,
        ):
            mlflow.run("abc")
        assert "MLflow at http://127.0.0.1:1 does not answer (Connection refused)" in str(error.value)

    def test_the_reason_is_not_the_error_that_is_being_cleaned_up_after(self) -> None:
        with client("http://127.0.0.1:1", policy=AT_ONCE) as mlflow:
            try:
                raise FileNotFoundError(2, "the training failed")
            except FileNotFoundError:
                with pytest.raises(MlflowUnavailable, match="Connection refused"):
                    mlflow.finish("abc", "FAILED")


class TestRefusals:
    def test_a_server_that_was_not_told_its_own_name_is_explained(self, proxy: FaultyProxy) -> None:
        said = "Invalid Host header - possible DNS rebinding attack detected"
        proxy.standing = ProxyFault(status=403, body=said, content_type="text/plain")
        with client(proxy.url) as mlflow, pytest.raises(MlflowRefused, match=r"--allowed-hosts 127\.0\.0\.1:"):
            mlflow.experiment("1")

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_rejected_login_names_its_settings_and_is_not_tried_again(self, proxy: FaultyProxy, status: int) -> None:
        proxy.standing = ProxyFault(status=status, body="no")
        with client(proxy.url) as mlflow, pytest.raises(MlflowRefused) as error:
            mlflow.experiment("1")
        assert str(error.value).startswith(f"{status} ")
        assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN" in str(error.value)
        assert len(proxy.seen) == 1

    def test_a_redirect_to_a_login_page_is_recognised(self, proxy: FaultyProxy) -> None:
        proxy.standing = ProxyFault(status=302, headers={"Location": "https://sso.example.com/login?state=secret"})
        with client(proxy.url) as mlflow, pytest.raises(MlflowRefused) as error:
            mlflow.experiment("1")
        assert "redirects to https://sso.example.com/login: if that is a login page" in str(error.value)

    @pytest.mark.parametrize(
        ("fault", "told"),
        [
            (ProxyFault(status=404, body="<html>nginx</html>"), "has no MLflow REST API (404 Not Found)"),
            (ProxyFault(body='{"hello": 1}', content_type="application/json"), "JSON of another shape"),
            (ProxyFault(status=499, body="?"), "has no MLflow REST API (499)"),
            (
                ProxyFault(status=404, body='{"message": "Not Found"}', content_type="application/json"),
                "has no MLflow REST API (404 Not Found: Not Found)",
            ),
        ],
    )
    def test_another_server_is_not_taken_for_mlflow(self, proxy: FaultyProxy, fault: ProxyFault, told: str) -> None:
        proxy.standing = fault
        with client(proxy.url) as mlflow, pytest.raises(MlflowError) as error:
            mlflow.experiment("1")
        assert told in str(error.value)
        assert "MLFLOW_TRACKING_URI is not the address of an MLflow server" in str(error.value)
        assert len(proxy.seen) == 1

    @pytest.mark.parametrize("path", ["/mlflow", "/tools/mlflow/"])
    def test_an_address_with_a_prefix_may_be_that_of_an_older_servers_pages(
        self, proxy: FaultyProxy, path: str
    ) -> None:
        # As MLflow 2.22 does with --static-prefix: https://github.com/mlflow/mlflow/issues/4484
        with (
            proxy.faulty(ProxyFault(status=404, body="<html>"), applies=lambda asked: asked.path.startswith("/mlflow")),
            proxy.faulty(ProxyFault(status=404, body="<html>"), applies=lambda asked: asked.path.startswith("/tools")),
            client(f"{proxy.url}{path}") as mlflow,
            pytest.raises(MlflowError) as error,
        ):
            mlflow.experiment("0")
        assert str(error.value).endswith(
            "MLflow before 3.12 serves its API without --static-prefix, its pages with it: if that server has one, set "
            f"MLFLOW_TRACKING_URI={proxy.url} and MLFLOW_UI_URL={proxy.url}{path.rstrip('/')}"
        )

    def test_an_address_without_a_prefix_needs_no_such_advice(self, proxy: FaultyProxy) -> None:
        proxy.standing = ProxyFault(status=404)
        with client(proxy.url) as mlflow, pytest.raises(MlflowError) as error:
            mlflow.experiment("0")
        assert "prefix" not in str(error.value)

    def test_a_web_page_for_ever_is_not_taken_for_mlflow(self, proxy: FaultyProxy) -> None:
        proxy.standing = HTML
        with client(proxy.url, policy=AT_ONCE) as mlflow, pytest.raises(MlflowUnavailable) as error:
            mlflow.experiment("1")
        assert "answered with text/html instead of MLflow's JSON, so it is not an MLflow server" in str(error.value)


class TestLogin:
    def authorization(self, proxy: FaultyProxy, **more: Any) -> str | None:
        uri = more.pop("uri", proxy.url)
        with client(uri, **more) as mlflow:
            mlflow.find_run("0", tags={})
            assert "@" not in mlflow.uri
        return proxy.seen[-1].headers.get("Authorization")

    def test_user_and_password_are_sent_as_basic_auth(self, proxy: FaultyProxy) -> None:
        assert self.authorization(proxy, username="ann", password="pä:ss") == "Basic YW5uOnDDpDpzcw=="

    def test_a_token_is_sent_as_bearer(self, proxy: FaultyProxy) -> None:
        assert self.authorization(proxy, token="t0ken\n") == "Bearer t0ken"

    def test_no_login_is_sent_when_there_is_none(self, proxy: FaultyProxy) -> None:
        assert self.authorization(proxy) is None

    def test_a_login_in_the_address_is_used_and_never_shown(self, proxy: FaultyProxy) -> None:
        uri = proxy.url.replace("http://", "http://ann:p%40ss@")
        assert self.authorization(proxy, uri=uri) == "Basic YW5uOnBAc3M="
        proxy.standing = ProxyFault(status=401)
        with client(uri) as mlflow, pytest.raises(MlflowRefused) as error:
            mlflow.experiment("1")
        assert "p%40ss" not in str(error.value)

    def test_a_token_that_cannot_be_sent_is_not_printed(self) -> None:
        with pytest.raises(SettingsError, match="MLFLOW_TRACKING_TOKEN") as error:
            client("http://127.0.0.1:1", token="two\nlines")
        assert "lines" not in str(error.value)

    @settings(deadline=None)
    @given(login=st.text(min_size=6, max_size=20, alphabet=st.characters(exclude_categories=["Cs"])))
    def test_no_address_prints_its_login(self, login: str) -> None:
        secret = quote(f"s3cret-{login}", safe="")
        address = Address.parse(
            f"https://ann:{secret}@mlflow.example.com/base/", setting="MLFLOW_TRACKING_URI", example="-"
        )
        assert (address.uri, address.password) == ("https://mlflow.example.com/base", f"s3cret-{login}")
        assert "s3cret" not in repr(address)


class TestAddress:
    @pytest.mark.parametrize(
        "uri",
        [
            "file:///mlruns",
            "./mlruns",
            "sqlite:///mlflow.db",
            "postgresql://u:hidden@db/x",
            "http://",
            "",
        ],
    )
    def test_only_a_server_can_be_reached_from_another_machine(self, uri: str) -> None:
        with pytest.raises(SettingsError, match="MLFLOW_TRACKING_URI has to begin with http:// or https://") as error:
            client(uri)
        assert "hidden" not in str(error.value)

    @pytest.mark.parametrize(
        ("uri", "sentence"),
        [
            ("databricks", "address of the workspace, .* MLFLOW_TRACKING_TOKEN"),
            ("databricks://profile", "address of the workspace, .* MLFLOW_TRACKING_TOKEN"),
        ],
    )
    def test_a_managed_server_that_we_cannot_ask_is_named_with_what_to_do(self, uri: str, sentence: str) -> None:
        # https://github.com/mlflow/skills/pull/23
        with pytest.raises(SettingsError, match=sentence) as error:
            client(uri)
        assert "mlflow server`" not in str(error.value)

    @pytest.mark.parametrize("uri", ["http://host:port", "http://[::1", "http://host:99999"])
    def test_what_is_no_address_is_said_to_be_none(self, uri: str) -> None:
        with pytest.raises(SettingsError, match="MLFLOW_UI_URL is not an address"):
            client("http://127.0.0.1:1", ui_url=uri)
        with pytest.raises(SettingsError, match="MLFLOW_TRACKING_URI is not an address"):
            client(uri)

    @pytest.mark.parametrize(
        ("uri", "ui", "page"),
        [
            ("http://mlflow:5000", None, "http://mlflow:5000"),
            ("http://mlflow:5000", "https://ml.example.com/mlflow/", "https://ml.example.com/mlflow"),
            ("http://127.0.0.1:5000/", "http://ann:s3cret@ml.example.com", "http://ml.example.com"),
        ],
    )
    def test_links_lead_to_where_people_find_mlflow(self, uri: str, ui: str | None, page: str) -> None:
        answer = {"run": {"info": {"run_id": "a1", "experiment_id": "3", "status": "RUNNING"}}}
        with client(uri, ui_url=ui) as mlflow:
            assert mlflow.run_url(Run.from_json(answer)) == f"{page}/#/experiments/3/runs/a1"
            assert mlflow.uri == uri.rstrip("/")

    def test_the_address_of_a_page_is_not_the_servers(self) -> None:
        with pytest.raises(SettingsError, match="MLFLOW_UI_URL is the address of a page: leave out all from the # or"):
            client("http://127.0.0.1:5000", ui_url="http://127.0.0.1:5000/#/experiments/3")
        with pytest.raises(SettingsError, match="leave out all from the # or"):
            client("http://127.0.0.1:5000/#/experiments/3")

    def test_a_host_that_cannot_be_one_is_a_wrong_setting(self) -> None:
        with client("http://.example.com") as mlflow, pytest.raises(SettingsError, match="MLFLOW_TRACKING_URI"):
            mlflow.experiment("1")


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        """A self-signed certificate for 127.0.0.1, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mlflow")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = tmp_path / "certificate.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        return pem

    def test_an_untrusted_certificate_names_the_setting(self, certificate: Path) -> None:
        with (
            FaultyProxy(certificate=certificate) as proxy,
            client(proxy.url) as mlflow,
            pytest.raises(MlflowError, match="set MLFLOW_TRACKING_SERVER_CERT_PATH") as error,
        ):
            mlflow.experiment("1")
        assert "self-signed certificate" in str(error.value)

    def test_a_private_certificate_is_trusted_when_given(
        self, mlflow_server: MlflowServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/dev/null")
        with (
            FaultyProxy(mlflow_server.url, certificate=certificate) as proxy,
            client(proxy.url, ca_bundle=certificate) as mlflow,
        ):
            assert mlflow.experiment("0").name == "Default"

    def test_a_missing_certificate_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="MLFLOW_TRACKING_SERVER_CERT_PATH: there is no file"):
            client("https://127.0.0.1:1", ca_bundle=tmp_path / "none.pem")

    def test_a_server_without_tls_is_away(self, proxy: FaultyProxy) -> None:
        uri = proxy.url.replace("http", "https")
        with (
            client(uri, policy=AT_ONCE) as mlflow,
            pytest.raises(MlflowUnavailable, match="does not answer"),
        ):
            mlflow.experiment("1")
