"""A login that runs something else than what it is given: noticed at once, and quoted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.errors import SshError, SshUnreachable
from orchestrator.remote.training import RemoteTraining
from orchestrator.resources import retry
from orchestrator.resources.ssh import login_advice, login_words
from orchestrator_tests.support.follower import GATED, QUICK, Follower
from orchestrator_tests.support.gate import Gate
from orchestrator_tests.support.ssh_server import SshHost

PLEASE = """echo 'Please login as the user "ubuntu" rather than the user "root".'; echo; """


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        ("case $- in *i*) ;; *) exit ;; esac;", "it said nothing; look at what it runs first"),
        ("echo This account can only be used for SFTP; exit;", "SFTP` on stdout; this login may not run commands"),
        ("echo Welcome; echo 'state: running'; exit 0;", "`Welcome state: running` on stdout"),
        ("echo 'no shell for you' >&2; cat; exit 0;", "`no shell for you` on stderr"),
    ],
)
def test_a_login_that_runs_something_else_and_is_content_is_no_training_under_way(
    host: SshHost, follower: Follower, monkeypatch: pytest.MonkeyPatch, greeting: str, words: str
) -> None:
    monkeypatch.setattr(host, "greeting", greeting)
    with pytest.raises(SshError, match=r"login of SSH_USER does not run .* exits with status 0") as caught:
        follower.start("true", SECRET="hunter22")
    assert words in str(caught.value)
    assert "hunter22" not in str(caught.value)
    assert not isinstance(caught.value, SshUnreachable)


@pytest.mark.parametrize("verb", ["state", "stop"])
def test_no_other_question_is_answered_by_something_else_either(
    host: SshHost, follower: Follower, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(host, "greeting", "echo hello; exit;")
    with pytest.raises(SshError, match="`hello` on stdout"):
        getattr(follower.training, verb)()


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        (f"{PLEASE} exit 142;", ["(status 142)", 'Please login as the user "ubuntu"', "set SSH_USER=ubuntu"]),
        ("echo This account is currently not available.; exit 1;", ["(status 1)", "may not run commands"]),
        ("echo -n 'Your name? '; read name;", ["Your name?"]),
        ("echo 'Password change required but no TTY available.' >&2; exit 1;", ["on stderr", "locked until"]),
        ("kill -9 $$;", ["killed by a signal", "said nothing"]),
    ],
)
def test_what_the_login_says_is_quoted_with_what_to_do(
    host: SshHost, follower: Follower, monkeypatch: pytest.MonkeyPatch, greeting: str, words: list[str]
) -> None:
    monkeypatch.setattr(host, "greeting", greeting)
    with pytest.raises(SshError) as caught:
        follower.start("true", SECRET="hunter22")
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    assert "hunter22" not in str(caught.value)


def test_a_login_that_waits_for_an_answer_is_quoted_too(
    host: SshHost, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "greeting", "echo 'Accept the terms (y/n)?'; exec sleep 300;")
    impatient = RemoteTraining(follower.ssh, follower.run_id, calls=replace(retry.REMOTE_STOP, answer_seconds=1))
    with pytest.raises(SshUnreachable, match=r"did not end within 1 s; before that, it said `Accept the terms"):
        impatient.state()


def test_words_after_the_answer_change_nothing(
    host: SshHost, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "greeting", "trap 'echo bye' EXIT;")
    assert follower.start("echo", "only this") is True
    assert follower.start("echo", "twice") is False
    assert follower.follow().succeeded
    assert follower.text.startswith("only this\n")


@pytest.mark.services
def test_a_login_that_is_replaced_under_way_is_no_lost_connection(
    host: SshHost, follower: Follower, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower.start(*GATED, GATE=str(gate))

    def replace_login(_: str) -> None:
        monkeypatch.setattr(host, "greeting", "echo Only for SFTP; exit 0;")
        host.cut()

    with pytest.raises(SshError, match=r"does not run the command .*`Only for SFTP` on stdout") as caught:
        follower.training.follow(replace_login)
    assert not isinstance(caught.value, SshUnreachable)
    monkeypatch.setattr(host, "greeting", "")
    gate.open()
    assert follower.follow().status == 5


def test_a_login_that_fails_for_a_while_is_waited_for_and_one_that_goes_on_failing_is_not(
    host: SshHost, follower: Follower, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower.start(*GATED, GATE=str(gate))
    quick = replace(QUICK, longest_pause_seconds=0.1, first_pause_seconds=0.1)
    failures: list[int] = []

    def write(text: str) -> None:
        follower.said.append(text)
        if not failures:
            monkeypatch.setattr(host, "greeting", "echo 'bash: fork: Cannot allocate memory' >&2; exit 254;")
            host.cut()

    def check() -> None:
        failures.append(1)
        if len(failures) == 8:
            monkeypatch.setattr(host, "greeting", "")
            gate.open()

    patient = Follower(host, run_id=follower.run_id, ssh=follower.ssh, following=quick)
    assert patient.training.follow(write, check=check).status == 5
    assert follower.text == "before\nafter\n"

    monkeypatch.setattr(host, "greeting", "echo 'bash: fork: Cannot allocate memory' >&2; exit 254;")
    impatient = Follower(host, run_id=follower.run_id, ssh=follower.ssh, following=replace(quick, total_seconds=0))
    with pytest.raises(SshError, match=r"status 254.*fork: Cannot allocate memory` on stderr.*larger INSTANCE_TYPE"):
        impatient.follow()


def test_what_a_command_was_given_is_never_quoted() -> None:
    stdin = b"export TOKEN=hunter22\nrun mlflow\n"
    assert login_words(b"hello\n" + stdin, stdin, stdin=stdin) == "it said `hello` on stdout"
    assert login_words(stdin, b"", stdin=stdin) == "it said nothing"
    assert "\x1b" not in login_words(b"\x1b[31mred\x1b[0m \x1b]0;title\x07", b"")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (b'Please login as the user "ec2-user" rather than the user "root".', "SSH_USER=ec2-user"),
        (b"Please login as the ec2-user user rather than root user.", "SSH_USER=ec2-user"),
        (b"Please log in as admin", "SSH_USER=admin"),
        (b"This service allows sftp connections only.", "SSH_USER"),
        (b"cat: write error: No space left on device", "ROOT_VOLUME_GB"),
        (b"sh: 1: wc: not found", "AMI_ID"),
    ],
)
def test_known_words_have_an_advice(words: bytes, advice: str) -> None:
    assert advice in (login_advice(words, b"") or "")
    assert advice in (login_advice(b"", words) or "")
