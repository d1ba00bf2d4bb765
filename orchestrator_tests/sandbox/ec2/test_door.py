"""The sandbox's EC2 API executes user-data: it takes orders from this sandbox only, and none from a web page."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

import boto3
import pytest
import requests
from botocore.auth import SIGV4_TIMESTAMP, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from orchestrator_sandbox.ec2.server import Ec2Server
from orchestrator_sandbox.proxy import FaultyProxy

FORM = "application/x-www-form-urlencoded"
CLAIM = "AWS4-HMAC-SHA256 Credential={id}/20261126/us-east-1/ec2/aws4_request"
EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ec2Server]:
    with Ec2Server(tmp_path_factory.mktemp("ec2")) as running:
        yield running


def order(server: Ec2Server, **changes: str) -> str:
    """A RunInstances with user-data, as a form sends it."""
    env = server.env()
    fields = {
        "Action": "RunInstances",
        "Version": "2016-11-15",
        "ImageId": env["AMI_ID"],
        "InstanceType": "t3.medium",
        "MinCount": "1",
        "MaxCount": "1",
        "UserData": "I2Nsb3VkLWNvbmZpZwpib290Y21kOiBbaWRd",
        **changes,
    }
    return urlencode(fields)


def signed(
    server: Ec2Server,
    body: str,
    *,
    key_id: str | None = None,
    secret: str | None = None,
    at: datetime | None = None,
) -> dict[str, str]:
    """Headers that a POST is signed with, at any time."""
    env = server.env()
    auth = SigV4Auth(
        Credentials(key_id or env["AWS_ACCESS_KEY_ID"], secret or env["AWS_SECRET_ACCESS_KEY"]), "ec2", "us-east-1"
    )
    now = (at or datetime.now(UTC)).strftime(SIGV4_TIMESTAMP)
    headers = {"Content-Type": FORM, "X-Amz-Date": now}
    request = AWSRequest("POST", f"{server.url}/", headers=headers, data=body.encode())
    request.context["timestamp"] = now
    signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    names = auth.signed_headers(auth.headers_to_sign(request))
    text = f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "Authorization": text}


def send(
    server: Ec2Server, body: str | bytes, headers: Mapping[str, str | None], method: str = "POST", path: str = "/"
) -> requests.Response:
    return requests.request(method, f"{server.url}{path}", data=body, headers=dict(headers), timeout=30)


def nothing_runs(server: Ec2Server) -> bool:
    return not server.instance_ids()


def client(server: Ec2Server, endpoint: str = "", **credentials: str) -> Any:
    env = server.env()
    return boto3.client(
        "ec2",
        endpoint_url=endpoint or server.url,
        region_name="us-east-1",
        aws_access_key_id=credentials.get("key_id", env["AWS_ACCESS_KEY_ID"]),
        aws_secret_access_key=credentials.get("secret", env["AWS_SECRET_ACCESS_KEY"]),
        config=Config(retries={"total_max_attempts": 1}),
    )


def test_a_signed_order_is_taken(server: Ec2Server) -> None:
    body = order(server, Action="DescribeImages")
    answer = send(server, body, signed(server, body))
    assert answer.status_code == 200
    assert server.env()["AMI_ID"] in answer.text
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_each_sandbox_has_credentials_of_its_own(server: Ec2Server, tmp_path: Any) -> None:
    with Ec2Server(tmp_path) as other:
        ours, theirs = server.env(), other.env()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert ours[name] != theirs[name]
            assert len(ours[name]) >= 20
        with pytest.raises(ClientError, match="AuthFailure"):
            client(other, key_id=ours["AWS_ACCESS_KEY_ID"], secret=ours["AWS_SECRET_ACCESS_KEY"]).describe_images()


def test_the_preflight_of_a_foreign_page_is_refused(server: Ec2Server) -> None:
    answer = send(
        server,
        "",
        {
            "Origin": EVIL,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,x-amz-date",
            "Access-Control-Request-Private-Network": "true",
        },
        "OPTIONS",
    )
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("origin", [EVIL, "null", "http://127.0.0.1:1", "http://localhost:8080", "self", ""])
@pytest.mark.parametrize("kind", [FORM, "text/plain", "multipart/form-data; boundary=x", "application/json", None])
def test_no_web_page_can_start_an_instance(server: Ec2Server, origin: str, kind: str | None) -> None:
    """Not even with the right signature, which a page cannot know."""
    body = order(server)
    page = {"Origin": server.url if origin == "self" else origin, "Content-Type": kind}
    anonymous = send(server, body, page)
    by_query = send(server, "", page, path=f"/?{body}")
    knowing = send(server, body, {**signed(server, body), "Origin": page["Origin"]})
    for answer in (anonymous, by_query, knowing):
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert nothing_runs(server)


@pytest.mark.parametrize("path", ["/", "/moto-api/reset", "/moto-api/data.json", "/moto-api/config", "/any"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_nothing_is_answered_without_a_signature(server: Ec2Server, method: str, path: str) -> None:
    """As an image, a script, a link or a form asks, which send no Origin, or by another user of the computer."""
    answer = send(server, order(server), {"Content-Type": FORM}, method, f"{path}?{order(server)}")
    assert answer.status_code == 401
    assert nothing_runs(server)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "localhost:{port}", "127.0.0.1", "127.0.0.1:1", ""]
)
def test_another_name_is_refused(server: Ec2Server, host: str) -> None:
    """That is how a page asks whose own name was made to lead here (DNS rebinding)."""
    body = order(server)
    name = host.format(port=urlsplit(server.url).port)
    answer = send(server, body, {**signed(server, body), "Host": name})
    assert answer.status_code == 421
    assert nothing_runs(server)


def test_an_address_in_the_request_line_counts_as_its_host(server: Ec2Server) -> None:
    port = urlsplit(server.url).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=30) as raw:
        raw.sendall(
            f"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
        )
        assert raw.makefile("rb").readline().split()[1] == b"421"


@pytest.mark.parametrize(
    ("key_id", "secret"),
    [
        ("sandbox", "sandbox"),
        ("AKIAIOSFODNN7EXAMPLE", None),
        (None, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    ],
)
def test_other_credentials_are_refused_as_aws_does(server: Ec2Server, key_id: str | None, secret: str | None) -> None:
    env = server.env()
    wrong = {"key_id": key_id or env["AWS_ACCESS_KEY_ID"], "secret": secret or env["AWS_SECRET_ACCESS_KEY"]}
    with pytest.raises(ClientError, match=r"AuthFailure.*not able to validate the provided access credentials"):
        client(server, **wrong).run_instances(ImageId=server.env()["AMI_ID"], MinCount=1, MaxCount=1)
    body = order(server)
    assert send(server, body, signed(server, body, key_id=key_id, secret=secret)).status_code == 401
    assert nothing_runs(server)


def test_a_signature_is_for_one_order(server: Ec2Server) -> None:
    harmless = order(server, Action="DescribeImages")
    headers = signed(server, harmless)
    assert send(server, order(server), headers).status_code == 401
    assert send(server, harmless, headers, path=f"/?{order(server)}").status_code == 401
    assert send(server, harmless, headers, path="/moto-api/reset").status_code == 401
    assert send(server, harmless, headers, method="PUT").status_code == 401
    assert nothing_runs(server)


def test_a_body_hash_of_the_client_s_is_not_believed(server: Ec2Server) -> None:
    """Else one signature with `UNSIGNED-PAYLOAD`, or with a known hash, would do for any order."""
    body = order(server)
    for value in ("UNSIGNED-PAYLOAD", "0" * 64):
        env = server.env()
        auth = SigV4Auth(Credentials(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]), "ec2", "us-east-1")
        request = AWSRequest("POST", f"{server.url}/", headers={"X-Amz-Content-SHA256": value}, data=body.encode())
        auth.add_auth(request)
        assert send(server, body, dict(request.headers.items())).status_code == 401
    assert nothing_runs(server)


@pytest.mark.parametrize("age", [timedelta(minutes=16), timedelta(minutes=-16), timedelta(days=365)])
def test_an_old_signature_is_refused(server: Ec2Server, age: timedelta) -> None:
    body = order(server)
    assert send(server, body, signed(server, body, at=datetime.now(UTC) - age)).status_code == 401
    assert nothing_runs(server)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic c2FuZGJveDpzYW5kYm94",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=, SignedHeaders=, Signature=",
        "AWS4-HMAC-SHA256 Credential={id}, SignedHeaders=host, Signature=0",
        f"{CLAIM}, SignedHeaders=host;x-amz-date, Signature=\xe4",
        f"{CLAIM}, SignedHeaders=, Signature={'0' * 64}",
        "AWS {id}:c2lnbmF0dXJl",
    ],
)
def test_a_malformed_signature_is_refused(server: Ec2Server, authorization: str) -> None:
    text = authorization.format(id=server.env()["AWS_ACCESS_KEY_ID"])
    answer = send(server, order(server), {"Authorization": text, "X-Amz-Date": "nonsense", "Content-Type": FORM})
    assert answer.status_code == 401
    assert nothing_runs(server)


def test_who_must_sign_must_sign_the_address_and_the_time(server: Ec2Server) -> None:
    body = order(server)
    env = server.env()
    auth = SigV4Auth(Credentials(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]), "ec2", "us-east-1")
    now = datetime.now(UTC).strftime(SIGV4_TIMESTAMP)
    request = AWSRequest("POST", f"{server.url}/", headers={"X-Other": "1"}, data=body.encode())
    request.context["timestamp"] = now
    lines = ["POST", "/", "", "x-other:1", "", "x-other", auth.payload(request)]
    signature = auth.signature(auth.string_to_sign(request, "\n".join(lines)), request)
    text = f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders=x-other, Signature={signature}"
    answer = send(server, body, {"Authorization": text, "X-Amz-Date": now, "X-Other": "1"})
    assert answer.status_code == 401
    assert nothing_runs(server)


@pytest.mark.parametrize("length", ["-1", "many", "99999999999"])
def test_a_length_that_cannot_be_is_refused_before_it_is_read(server: Ec2Server, length: str) -> None:
    port = urlsplit(server.url).port
    headers = "".join(f"{name}: {value}\r\n" for name, value in signed(server, "").items())
    with socket.create_connection(("127.0.0.1", port or 0), timeout=30) as raw:
        raw.sendall(f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\n{headers}\r\n".encode())
        assert raw.makefile("rb").readline().split()[1] in (b"400", b"413")


def test_a_stranger_does_not_keep_others_waiting(server: Ec2Server) -> None:
    port = urlsplit(server.url).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=30) as slow:
        slow.sendall(f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100\r\n\r\n".encode())
        answered = threading.Thread(target=client(server).describe_images)
        answered.start()
        answered.join(30)
        assert not answered.is_alive()


def test_a_proxy_that_is_known_may_stand_between(server: Ec2Server) -> None:
    with FaultyProxy(server.url) as proxy:
        with pytest.raises(ClientError, match="AuthFailure"):
            client(server, proxy.url).describe_images()
        server.answer_for(proxy.url)
        assert client(server, proxy.url).describe_images()["Images"]
