"""A PostgreSQL of our own, of Debian's package, in a folder of its own; and a PgBouncer before it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, run
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psycopg2

from orchestrator_sandbox.processes.child import ChildProcess, free_port
from orchestrator_tests.support.waiting import until

HOST = "127.0.0.1"
USER = "team"
PASSWORD = "p@ss w/rd:1?#%"  # as it may be
ACCOUNT = "postgres"
"""Whom Debian's package makes: PostgreSQL refuses to run as root."""


def _as_server(argv: Sequence[str]) -> list[str]:
    if os.geteuid() != 0:
        return list(argv)
    return ["setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups", *argv]


def _program(name: str) -> str:
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return str(newest[-1])


@contextmanager
def _folder() -> Iterator[Path]:
    """Not below pytest's own, which other users cannot enter."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if os.geteuid() == 0:
        shutil.chown(folder, ACCOUNT, ACCOUNT)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Postgres:
    """A server with one superuser, `USER`, who needs a password."""

    def __init__(self) -> None:
        self.port = free_port(HOST)
        self._tls: Mapping[str, object] = {}
        self._child: ChildProcess | None = None

    def __enter__(self) -> Self:
        self._context = _folder()
        self.folder = self._context.__enter__()
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(password, ACCOUNT, ACCOUNT)
        data = str(self.folder / "data")
        options = ["--auth=scram-sha-256", f"--pwfile={password}", f"--username={USER}", "--no-sync", "--encoding=UTF8"]
        run(_as_server([_program("initdb"), *options, "-D", data]), cwd=self.folder, check=True, stdout=DEVNULL)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._context.__exit__(kind, error, trace)

    def start(self) -> None:
        """Start it, on the same port as before, and wait until it answers."""
        settings = {"port": self.port, "listen_addresses": HOST, "unix_socket_directories": self.folder, "fsync": "off"}
        settings |= self._tls
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        argv = _as_server([_program("postgres"), "-D", str(self.folder / "data"), *flags])
        self._child = ChildProcess(argv, name="PostgreSQL", log=self.folder / "log", cwd=self.folder)
        until(lambda: _accepts(self.url("postgres")), seconds=60, every=0.1)

    def stop(self) -> None:
        """End it, with all connections."""
        if self._child:
            os.kill(self._child.pid, signal.SIGINT)  # by SIGTERM it waits for its clients
            self._child.close()
            self._child = None

    def use_tls(self, certificate: Path, key: Path) -> None:
        """Start again, with this certificate; without TLS nobody gets in any more."""
        self.stop()
        mine = self.folder / "server.pem", self.folder / "server.key"
        for source, target in zip((certificate, key), mine, strict=True):
            target.write_bytes(source.read_bytes())
            target.chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(target, ACCOUNT, ACCOUNT)
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text("hostssl all all all scram-sha-256\n")
        self._tls = {"ssl": "on", "ssl_cert_file": mine[0], "ssl_key_file": mine[1]}
        self.start()

    def url(self, database: str, *, port: int | None = None, scheme: str = "postgresql") -> str:
        return f"{scheme}://{USER}:{quote(PASSWORD, safe='')}@{HOST}:{port or self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty one; its name."""
        name = f"d{secrets.token_hex(4)}"
        self.query(f"CREATE DATABASE {name}")
        return name

    def query(self, statement: str, *, database: str = "postgres") -> list[Any]:
        """What a statement answers, of a superuser."""
        connection = psycopg2.connect(self.url(database))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def connections(self, database: str) -> int:
        """How many are open to it."""
        query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        ((count,),) = self.query(query)
        return int(count)

    def terminate(self, backend: int) -> None:
        """End a connection, and wait until it has ended."""
        self.query(f"SELECT pg_terminate_backend({backend}, 10000)")


@contextmanager
def pgbouncer(server: Postgres) -> Iterator[int]:
    """The port of a PgBouncer in transaction mode that leads to all databases of the server."""
    with _folder() as folder:
        port = free_port(HOST)
        (folder / "users").write_text(f'"{USER}" "{PASSWORD}"\n')
        lines = {
            "listen_addr": HOST,
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": folder / "users",
            "pool_mode": "transaction",
            "max_client_conn": 200,
            "default_pool_size": 5,
        }
        config = folder / "pgbouncer.ini"
        settings = "\n".join(f"{name} = {value}" for name, value in lines.items())
        config.write_text(f"[databases]\n* = host={HOST} port={server.port}\n[pgbouncer]\n{settings}\n")
        for file in folder.iterdir():
            if os.geteuid() == 0:
                shutil.chown(file, ACCOUNT, ACCOUNT)
        with ChildProcess(
            _as_server(["/usr/sbin/pgbouncer", str(config)]), name="PgBouncer", log=folder / "log", cwd=folder
        ):
            until(lambda: _accepts(server.url("postgres", port=port)), seconds=30, every=0.1)
            yield port


def _accepts(url: str) -> bool:
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True
