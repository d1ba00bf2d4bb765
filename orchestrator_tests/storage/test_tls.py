"""TLS to a real PostgreSQL: its certificate is verified, and what is wrong with it is said with what to do."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from orchestrator.errors import SettingsError
from orchestrator.operate.backup import backup
from orchestrator.storage import address
from orchestrator_tests.storage.conftest import OpenInstance
from orchestrator_tests.support.certificate import signed_in
from orchestrator_tests.support.postgres import HOST, Postgres

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signed_in(tmp_path_factory.mktemp("tls"))[0]


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Postgres]:
    with Postgres() as server:
        server.use_tls(root.with_name("server.pem"), root.with_name("server.key"))
        yield server


def url_of(server: Postgres, **options: object) -> str:
    host = options.pop("host", "localhost")
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{server.url(server.new_database()).replace(f'@{HOST}:', f'@{host}:')}?{query}"


def encrypted(server: Postgres) -> list[tuple[bool]]:
    query = (
        "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'orchestrator'"
    )
    return server.query(query)


def test_with_its_root_certificate_the_whole_way_is_verified(
    server: Postgres, root: Path, open_instance: OpenInstance, tmp_path: Path
) -> None:
    with open_instance(url_of(server, sslmode="verify-full", sslrootcert=root)) as instance:
        assert instance.get_runs() == []
        assert encrypted(server) == [(True,)]
    backup(tmp_path, tmp_path / "backup")  # by pg_dump, which reads the address of a file
    assert (tmp_path / "backup").stat().st_size > 0


def test_system_stands_for_what_the_machine_trusts(
    server: Postgres, root: Path, open_instance: OpenInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(SettingsError, match="not signed by the authority in sslrootcert"):
        open_instance(url_of(server, sslrootcert="system"))
    monkeypatch.setenv("SSL_CERT_FILE", str(root))
    with open_instance(url_of(server, sslrootcert="system")) as instance:
        assert instance.get_runs() == []
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setattr(address, "ROOTS", ("/no/such/file", str(root)))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: Mock(cafile=None))
    with open_instance(url_of(server, sslrootcert="system")) as instance:
        assert instance.get_runs() == []


def test_what_is_wrong_with_a_certificate_is_said_with_what_to_do(
    server: Postgres, root: Path, open_instance: OpenInstance, tmp_path: Path
) -> None:
    (other := tmp_path / "other").mkdir()
    (namesake := tmp_path / "namesake").mkdir()
    other_root, namesake_root = signed_in(other, by="Another authority")[0], signed_in(namesake)[0]
    (no_pem := tmp_path / "no.pem").write_text("<html>Not found</html>")
    cases: list[tuple[str, dict[str, object]]] = [
        ("not signed by the authority in sslrootcert", {"sslrootcert": other_root}),
        ("not signed by the authority in sslrootcert", {"sslrootcert": namesake_root}),
        ("no root certificate is there", {"sslrootcert": tmp_path / "nothing.pem"}),
        ("is no file of certificates", {"sslrootcert": no_pem}),
        ("is for another name", {"sslrootcert": root, "host": HOST}),
        ("add sslmode=require", {"sslmode": "disable"}),
    ]
    for words, options in cases:
        url = url_of(server, **{"sslmode": "verify-full", **options})
        with pytest.raises(SettingsError) as refused:
            open_instance(url)
        assert words in str(refused.value), refused.value
