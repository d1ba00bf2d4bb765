"""Tokens for machines: shown once, kept as hashes, known at once, private."""

from __future__ import annotations

import json
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import main, orchestrator
from orchestrator.errors import SettingsError
from orchestrator.operate.web.caller import Role
from orchestrator.operate.web.tokens import FILE, MachineTokens


def test_a_token_is_found_by_itself_alone(tmp_path: Path) -> None:
    tokens = MachineTokens(tmp_path)
    made = {role: tokens.add(f"the-{role}", role) for role in Role}
    assert len(set(made.values())) == 3
    for role, token in made.items():
        entry = tokens.find(token)
        assert entry
        assert (entry.name, entry.role) == (f"the-{role}", role)
    assert tokens.find("") is None
    assert tokens.find(made[Role.ADMIN] + "x") is None


def test_only_the_hash_is_kept_and_only_for_us(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        token = MachineTokens(tmp_path / "home").add("ci", Role.ADMIN)
    finally:
        os.umask(before)
    for file in (tmp_path / "home").iterdir():
        assert token not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert FILE in [file.name for file in (tmp_path / "home").iterdir()]


def test_a_change_is_known_without_a_restart(tmp_path: Path) -> None:
    serving, cli = MachineTokens(tmp_path), MachineTokens(tmp_path)
    assert serving.find("x") is None
    one, other = cli.add("one", Role.VIEWER), cli.add("other", Role.VIEWER)
    assert serving.find(one)
    cli.remove("one")
    assert serving.find(one) is None
    assert serving.find(other)
    (tmp_path / FILE).unlink()
    assert serving.find(other) is None


def test_tokens_that_are_added_at_once_are_all_kept(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: MachineTokens(tmp_path).add(f"m{number}", Role.VIEWER), range(24)))
    assert sorted(entry.name for entry in MachineTokens(tmp_path).all()) == sorted(f"m{n}" for n in range(24))


@pytest.mark.parametrize("name", ["", "a b", "-x", "../x", "a\n", "\u00e4", "x" * 65])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="is no name for a token"):
        MachineTokens(tmp_path).add(name, Role.VIEWER)
    assert MachineTokens(tmp_path).all() == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}x", "[1]", '[{"name": "a"}]', '{"a": 1}', '[{"name":"a","role":"boss","sha256":"x","created":"y"}]'],
)
def test_a_file_that_cannot_be_read_opens_nothing(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    tokens = MachineTokens(tmp_path)
    token = tokens.add("ci", Role.ADMIN)
    (tmp_path / FILE).write_text(text)
    with caplog.at_level(logging.ERROR):
        assert tokens.find(token) is None
        assert tokens.find(token) is None
    assert caplog.text.count("Refusing all machine tokens") == 1
    with pytest.raises(SettingsError, match="delete it and add the tokens anew"):
        tokens.all()


def test_a_file_that_others_may_change_opens_nothing(tmp_path: Path) -> None:
    tokens = MachineTokens(tmp_path)
    token = tokens.add("ci", Role.ADMIN)
    (tmp_path / FILE).chmod(0o622)
    assert tokens.find(token) is None
    (tmp_path / FILE).chmod(0o600)
    assert tokens.find(token)


def test_a_hash_is_no_token(tmp_path: Path) -> None:
    tokens = MachineTokens(tmp_path)
    tokens.add("ci", Role.ADMIN)
    (entry,) = json.loads((tmp_path / FILE).read_text())
    assert tokens.find(entry["sha256"]) is None


def test_the_command_prints_a_token_once_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    made = CliRunner().invoke(orchestrator, ["token", "add", "ci", "--role", "launcher"])
    assert made.exit_code == 0
    (token,) = made.stdout.split()
    assert MachineTokens(tmp_path / "home").find(token)
    listed = CliRunner().invoke(orchestrator, ["token", "list"])
    assert listed.stdout.split()[:2] == ["ci", "launcher"]
    assert token not in listed.output
    (entry,) = json.loads(CliRunner().invoke(orchestrator, ["token", "list", "--json"]).stdout)
    assert {"name": "ci", "role": "launcher"}.items() <= entry.items()
    assert CliRunner().invoke(orchestrator, ["token", "remove", "ci"]).exit_code == 0
    assert MachineTokens(tmp_path / "home").find(token) is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["remove", "nobody"], "there is no token named nobody"),
        (["add", "a b", "--role", "viewer"], "'a b' is no name for a token"),
        (["add", "ci", "--role", "boss"], "'boss' is not one of 'viewer', 'launcher', 'admin'"),
        (["add", "ci"], "Missing option '--role'"),
        ([], "Missing command; `orchestrator token --help` lists"),
    ],
)
def test_a_wrong_word_is_explained_in_one_sentence(
    words: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("orchestrator.cli.program.unwind_on_signals", lambda: None)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert main(["token", *words]) in (1, 2)
    sentence = capsys.readouterr().err
    assert complaint in sentence
    assert sentence.count("\n") == 1


@pytest.mark.parametrize("fields", [{"name": 5}, {"sha256": 5}, {"sha256": None}, {"role": {}}, {"more": 1}])
def test_a_file_of_tokens_with_wrong_types_opens_nothing(tmp_path: Path, fields: dict[str, object]) -> None:
    token = MachineTokens(tmp_path).add("ci", Role.ADMIN)
    (entry,) = json.loads((tmp_path / "tokens.json").read_text())
    (tmp_path / "tokens.json").write_text(json.dumps([{**entry, **fields}]))
    assert MachineTokens(tmp_path).find(token) is None
    with pytest.raises(SettingsError, match="delete it and add the tokens anew"):
        MachineTokens(tmp_path).all()
