"""People who log in by a password: kept as argon2id hashes, known at once, never told from nobody by a clock."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from click.testing import CliRunner

from orchestrator.cli.main import main, orchestrator
from orchestrator.errors import SettingsError
from orchestrator.operate.web.caller import Role
from orchestrator.operate.web.users import Users

PASSWORD = "correct horse battery"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def users_in(folder: Path) -> Users:
    return Users(folder / "users.json", hasher=CHEAP)


def test_a_user_is_verified_by_his_own_password_alone(tmp_path: Path) -> None:
    users = users_in(tmp_path)
    users.add("Ada", Role.ADMIN, PASSWORD)
    users.add("vic", Role.VIEWER, "viewer's own password")
    for name in ("Ada", "ada", "ADA"):
        found = users.verified(name, PASSWORD)
        assert found
        assert (found.name, found.role) == ("Ada", Role.ADMIN)
    for name, password in (
        ("Ada", ""),
        ("Ada", PASSWORD + " "),
        ("Ada", PASSWORD.upper()),
        ("Ada", "viewer's own password"),
        ("nobody", PASSWORD),
        ("", ""),
        ("Ada", "x" * 100_000),
        ("Ada", "\udcff"),
    ):
        assert users.verified(name, password) is None


def test_the_hash_is_argon2id_and_the_password_is_nowhere(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Users(tmp_path / "home" / "users.json").add("ada", Role.ADMIN, PASSWORD)
    finally:
        os.umask(before)
    (entry,) = json.loads((tmp_path / "home" / "users.json").read_text())
    assert entry["hash"].startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    for file in (tmp_path / "home").iterdir():
        assert PASSWORD not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "argon2" not in repr(Users(tmp_path / "home" / "users.json").all())


def test_a_change_is_known_without_a_restart_and_is_another_version(tmp_path: Path) -> None:
    serving, cli = users_in(tmp_path), users_in(tmp_path)
    assert serving.is_empty()
    versions = set()

    def version() -> str:
        user = serving.find("ada")
        assert user
        return user.version

    cli.add("ada", Role.VIEWER, PASSWORD)
    versions.add(version())
    cli.change("ada", role=Role.ADMIN)
    versions.add(version())
    cli.change("ada", password=PASSWORD)
    versions.add(version())
    cli.remove("ada")
    assert serving.find("ada") is None
    cli.add("ada", Role.ADMIN, PASSWORD)
    versions.add(version())
    assert len(versions) == 4


@pytest.mark.parametrize("name", ["", "ui", "UI", "a b", "-x", "../x", "a\n", "a:b", "\u00e4", "x" * 65])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="is no name for a user"):
        users_in(tmp_path).add(name, Role.VIEWER, PASSWORD)


@pytest.mark.parametrize("password", ["", "short", "x" * 11, "x" * 1025])
def test_a_short_password_is_refused_without_showing_it(tmp_path: Path, password: str) -> None:
    users = users_in(tmp_path)
    with pytest.raises(SettingsError, match="a password has 12 to 1024 characters") as refused:
        users.add("ada", Role.VIEWER, password)
    assert not password or password not in str(refused.value)
    assert users.all() == []


def test_a_name_is_taken_whatever_its_case(tmp_path: Path) -> None:
    users = users_in(tmp_path)
    users.add("Ada", Role.VIEWER, PASSWORD)
    with pytest.raises(SettingsError, match="there is a user named ada already"):
        users.add("ada", Role.ADMIN, PASSWORD)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o644, 0o640, 0o604, 0o601])
def test_a_file_that_others_may_read_or_change_lets_nobody_in(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Hashes can be guessed at by whoever has them, wherever the file stands."""
    users = users_in(tmp_path)
    users.add("ada", Role.ADMIN, PASSWORD)
    assert users.fault is None
    (tmp_path / "users.json").chmod(mode)
    assert users.verified("ada", PASSWORD) is None
    with pytest.raises(SettingsError, match=f"other users of this machine .mode {mode:o}.*chmod 600"):
        users.all()
    for _ in range(3):
        assert users.fault
    assert [line for line in caplog.messages if line.startswith("Refusing all users of")] == [
        f"Refusing all users of {tmp_path / 'users.json'}: {users.fault}"
    ]
    (tmp_path / "users.json").chmod(0o600)
    assert users.verified("ada", PASSWORD)
    assert users.fault is None


def test_a_file_of_somebody_else_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = users_in(tmp_path)
    users.add("ada", Role.ADMIN, PASSWORD)
    assert users.find("ada")
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    if own == 0:  # root's file is as good as ours
        assert users.find("ada")
        os.chown(users.file, 65534, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert users.find("ada") is None
    with pytest.raises(SettingsError, match=r"belongs to another user.*chown 4242"):
        users.all()


GOOD = {"name": "ada", "role": "admin", "hash": "$argon2id$x", "created": "2026", "changed": "2026"}
BROKEN = {
    "nothing": b"",
    "half an object": b"{",
    "a number for an entry": b"[1]",
    "a list for an entry": b"[[]]",
    "an object for the list": json.dumps({"users": [GOOD]}).encode(),
    "the list is null": b"null",
    "an entry is null": json.dumps([GOOD, None]).encode(),
    "fields that are missing": b'[{"name":"a"}]',
    "no such role": json.dumps([{**GOOD, "role": "boss"}]).encode(),
    "a role that is none": json.dumps([{**GOOD, "role": ["admin"]}]).encode(),
    "a number for a name": json.dumps([{**GOOD, "name": 5}]).encode(),
    "null for a hash": json.dumps([{**GOOD, "hash": None}]).encode(),
    "an object for a date": json.dumps([{**GOOD, "changed": {}}]).encode(),
    "a field that nobody knows": json.dumps([{**GOOD, "disabled": True}]).encode(),
    "deep nesting": b"[" * 99_999,
    "deep nesting in a field": b'[{"name":' + b"[" * 99_999,
    "not UTF-8": json.dumps([GOOD]).encode().replace(b"ada", b"\xe4da"),
    "UTF-16": json.dumps([GOOD]).encode("utf-16"),
    "half a character": json.dumps([{**GOOD, "name": "\udcff"}]).encode(),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_read_lets_nobody_in(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    users = users_in(tmp_path)
    users.add("ada", Role.ADMIN, PASSWORD)
    (tmp_path / "users.json").write_bytes(text)
    assert users.verified("ada", PASSWORD) is None
    assert users.verified("5", PASSWORD) is None
    with pytest.raises(
        SettingsError, match=r"is not as we write it \(.+\); delete it and add the users anew"
    ) as refused:
        users.all()
    assert "argon2id" not in str(refused.value)
    assert [line.partition(":")[0] for line in caplog.messages] == [f"Refusing all users of {tmp_path / 'users.json'}"]
    with pytest.raises(SettingsError, match="is not as we write it"):
        users.add("eve", Role.ADMIN, PASSWORD)
    assert (tmp_path / "users.json").read_bytes() == text


def test_what_is_no_file_lets_nobody_in_and_is_not_waited_for(tmp_path: Path) -> None:
    users = users_in(tmp_path)
    os.mkfifo(users.file, 0o600)
    assert users.find("ada") is None
    assert users.fault
    users.file.unlink()
    users.file.mkdir()
    assert users.fault
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        assert users.find("ada") is None
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Else who is removed by the one name of the file stays in by the other."""
    real, link = tmp_path / "real" / "users.json", tmp_path / "users.json"
    link.symlink_to(real)
    Users(link).add("eve", Role.ADMIN, PASSWORD)
    Users(real).add("ada", Role.ADMIN, PASSWORD)
    Users(link).remove("eve")
    assert link.is_symlink()
    assert [user.name for user in Users(real).all()] == ["ada"]


@pytest.mark.parametrize("password", [b"gr\xfcn und blau genug\n", "ein ganz langes\n".encode("utf-16"), b"\xff" * 20])
def test_a_password_that_is_not_utf_8_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: bytes
) -> None:
    """It became question marks, as good as which any other bytes were."""
    monkeypatch.setenv("ORCHESTRATOR_USERS_FILE", str(tmp_path / "users.json"))
    for words in (["add", "ada", "--role", "viewer"], ["passwd", "ada"]):
        asked = CliRunner().invoke(orchestrator, ["user", *words], input=password)
        assert str(asked.exception) == "the password is not UTF-8; convert it (`iconv -t UTF-8`), or type it"
        assert isinstance(asked.exception, SettingsError)
    with pytest.raises(SettingsError, match="the password is not UTF-8"):
        users_in(tmp_path).add("ada", Role.ADMIN, "a long enough \udcfc")
    assert users_in(tmp_path).all() == []
    made = CliRunner().invoke(
        orchestrator, ["user", "add", "ada", "--role", "viewer"], input="grün und blau\n".encode()
    )
    assert made.exit_code == 0
    assert Users(tmp_path / "users.json").verified("ada", "grün und blau")


def test_the_command_reads_the_password_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "elsewhere" / "people.json"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_USERS_FILE", str(file))
    run = CliRunner()
    made = run.invoke(orchestrator, ["user", "add", "ada", "--role", "launcher"], input=f"{PASSWORD}\n")
    assert made.exit_code == 0
    assert made.stdout == ""
    assert Users(file).verified("ada", PASSWORD)
    listed = run.invoke(orchestrator, ["user", "list"])
    assert listed.stdout.split()[:2] == ["ada", "launcher"]
    (entry,) = json.loads(run.invoke(orchestrator, ["user", "list", "--json"]).stdout)
    assert set(entry) == {"name", "role", "created", "changed"}
    assert run.invoke(orchestrator, ["user", "passwd", "ada"], input="another password\n").exit_code == 0
    assert Users(file).verified("ada", PASSWORD) is None
    assert Users(file).verified("ada", "another password")
    assert run.invoke(orchestrator, ["user", "role", "ada", "admin"]).exit_code == 0
    assert [user.role for user in Users(file).all()] == [Role.ADMIN]
    assert run.invoke(orchestrator, ["user", "remove", "ada"]).exit_code == 0
    assert Users(file).all() == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["remove", "nobody"], "there is no user named nobody"),
        (["passwd", "nobody"], "there is no user named nobody"),
        (["role", "nobody", "admin"], "there is no user named nobody"),
        (["add", "a b", "--role", "viewer"], "'a b' is no name for a user"),
        (["add", "ada", "--role", "boss"], "'boss' is not one of 'viewer', 'launcher', 'admin'"),
        (["add", "ada"], "Missing option '--role'"),
        (["add", "ada", PASSWORD, "--role", "viewer"], "unexpected extra argument"),
        (["add", "ada", "--role", "viewer", "--password", PASSWORD], "no such option '--password'"),
    ],
)
def test_a_wrong_word_is_explained_in_one_sentence(
    words: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    piped = tmp_path / "password"
    piped.write_text(f"{PASSWORD}\n")
    monkeypatch.setattr("orchestrator.cli.program.unwind_on_signals", lambda: None)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("ORCHESTRATOR_USERS_FILE", raising=False)
    with piped.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert main(["user", *words]) in (1, 2)
    sentence = capsys.readouterr().err
    assert complaint.lower() in sentence.lower()
    assert sentence.count("\n") == 1
