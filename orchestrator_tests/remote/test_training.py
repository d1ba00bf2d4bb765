"""What a training is given, and what it says: real `sh` processes behind real SSH."""

from __future__ import annotations

import resource
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator_tests.support.follower import GATED, Follower
from orchestrator_tests.support.gate import Gate
from orchestrator_tests.support.ssh_server import SshHost
from orchestrator_tests.support.waiting import until

NASTY = [
    *("a b", "it's", 'say "x"', "$(touch pwned)", "`id`", "line\nline\n", "-n", "--", "", "*", "~", "é→😀"),
    *("\\", ";&|#!", "$HOME", "\t\r\x7f\x1b[0m", "%s", "a=b", "{}", "\udcff not UTF-8"),
]


def test_command_and_environment_arrive_as_they_are(host: SshHost, follower: Follower) -> None:
    show = "import sys, os; sys.stdout.write(ascii([sys.argv[1:], os.environ['A'], os.environ['B']]))"
    follower.start(sys.executable, "-c", show, *NASTY, A="".join(NASTY), B="$(touch pwned)")
    assert follower.follow().succeeded
    assert follower.text == ascii([NASTY, "".join(NASTY), "$(touch pwned)"])
    assert not list(host.home.rglob("pwned"))


def test_secrets_are_in_no_command_line_and_in_no_file(follower: Follower, gate: Gate) -> None:
    follower.start(*GATED, SECRET="hunter22", GATE=str(gate))
    following = follower.following()
    until(lambda: follower.text)
    command_lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in command_lines if b"hunter22" in line]
    assert not [file for file in follower.directory.iterdir() if file.is_file() and b"hunter22" in file.read_bytes()]
    assert not list(follower.directory.glob("job*"))
    gate.open()
    following.result()


def test_what_it_leaves_on_the_instance_is_for_its_owner_only(follower: Follower) -> None:
    follower.start("sh", "-c", "umask; touch made-by-the-training")
    follower.follow()
    assert follower.directory.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o077 == 0 for file in follower.directory.iterdir() if not file.is_symlink())
    assert follower.text.strip() == "0022", "the training keeps the umask of the login"


def test_the_training_begins_in_the_home_directory(host: SshHost, follower: Follower) -> None:
    follower.start("pwd")
    follower.follow()
    assert follower.text.strip() == str(host.home)


def test_a_program_of_a_usual_place_is_found_though_the_login_lacks_it_on_path(
    host: SshHost, follower: Follower
) -> None:
    program = host.home / "venv" / "bin" / "our-mlflow"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\ncommand -v our-mlflow\n")
    program.chmod(0o755)
    follower.start("our-mlflow", "run")
    assert follower.follow().succeeded
    assert follower.text.strip() == str(program)


def test_a_program_that_only_the_login_profile_knows_is_found(host: SshHost, follower: Follower) -> None:
    program = host.home / "elsewhere" / "profiled-mlflow"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    (host.home / ".profile").write_text(f"echo noise\nPATH=$PATH:{program.parent}\n")
    follower.start("profiled-mlflow")
    assert follower.follow().succeeded
    assert follower.text == "found\n"


def tool(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {path}\n")
    path.chmod(0o755)
    return path


def test_path_is_widened_though_the_program_is_on_it(
    host: SshHost, follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = tool(tmp_path / "bin" / "our-mlflow")
    mlflow.write_text('#!/bin/sh\nfor name in conda uv pyenv own; do command -v our-$name; done; echo "$PATH"\n')
    monkeypatch.setitem(host.environment, "PATH", f"{mlflow.parent}:{host.environment['PATH']}")
    conda = tool(host.home / "miniconda3" / "bin" / "our-conda")
    uv = tool(host.home / ".local" / "bin" / "our-uv")
    pyenv = tool(host.home / ".pyenv" / "bin" / "our-pyenv")
    own = tool(host.home / "of profile" / "our-own")
    (host.home / ".profile").write_text(f'echo noise\nPATH="{own.parent}:$PATH"\n')
    tool(host.home / ".local" / "bin" / "sh")  # never before what is there
    follower.start("our-mlflow")
    follower.follow()
    found = follower.text.splitlines()
    assert found[:-1] == [str(program) for program in (conda, uv, pyenv, own)], follower.text
    assert found[-1].startswith(host.environment["PATH"])
    added = found[-1].removeprefix(host.environment["PATH"]).strip(":").split(":")
    assert {str(program.parent) for program in (conda, uv, pyenv, own)} <= set(added)
    assert len(added) == len(set(added))
    for place in ("miniconda3", ".local", ".pyenv"):
        shutil.rmtree(host.home / place)


@pytest.mark.parametrize(
    ("profile", "is_complained_of"),
    [
        ("PATH=$PATH:{place}\nsleep 300 &\n", False),
        ("PATH=$PATH:{place}\nwhile :; do sleep 1; done\n", True),
        ("PATH=$PATH:{place}\nexit 0\n", False),
        ("read answer; sleep 300 | cat\n", True),
    ],
)
def test_a_profile_that_leaves_something_behind_or_waits_holds_nothing_up(
    host: SshHost, follower: Follower, profile: str, is_complained_of: bool
) -> None:
    program = tool(host.home / "venv" / "bin" / "our-mlflow")
    (host.home / ".profile").write_text(profile.format(place=host.home / "elsewhere"))
    follower.start("our-mlflow", seconds=60)
    assert follower.follow().succeeded
    *complaint, line = follower.text.splitlines()
    assert line == str(program)
    assert ["profile" in text for text in complaint] == [True] * is_complained_of
    (host.home / ".profile").unlink()


@pytest.mark.parametrize("shell", ["/bin/false", "/no/such/shell"])
def test_a_login_whose_shell_answers_nothing_goes_on_with_the_known_places(
    host: SshHost, follower: Follower, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setitem(host.environment, "SHELL", shell)
    program = tool(host.home / "venv" / "bin" / "our-mlflow")
    follower.start("our-mlflow")
    assert follower.follow().succeeded
    assert follower.text.strip() == str(program)


def test_a_missing_program_is_explained(follower: Follower) -> None:
    follower.start("no-such-mlflow", "run")
    assert follower.follow().status == 127
    assert "no program no-such-mlflow" in follower.text
    assert "MLFLOW_COMMAND" in follower.text
    assert "AMI_ID" in follower.text


@pytest.mark.parametrize(
    ("command", "environment"),
    [([], {}), (["a\0b"], {}), (["a"], {"B": "\0"}), (["a"], {"A-B": ""}), (["a"], {"A=$(id)": ""})],
)
def test_what_no_program_can_be_given_is_refused_before_anything_is_sent(
    follower: Follower, command: list[str], environment: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"variable|NUL|no command"):
        follower.training.start(command, environment=environment, deadline=datetime.now(UTC))
    assert not follower.directory.exists()


def test_a_run_id_cannot_leave_its_directory(host: SshHost) -> None:
    with pytest.raises(ValueError, match="not an MLflow run ID"):
        Follower(host, run_id="../../etc")


# What it says


def test_output_and_complaints_come_in_the_order_they_were_written(follower: Follower) -> None:
    follower.start("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done")
    follower.follow()
    assert follower.text.split("\n")[:-1] == [f"{way} {i}" for i in range(1, 10) for way in ("out", "err")]


def test_what_python_prints_comes_in_order_and_at_once(follower: Follower, gate: Gate) -> None:
    script = (
        "import fcntl, sys\nprint('one')\nprint('two', file=sys.stderr)\nprint('three')\n"
        f"fcntl.flock(open({str(gate)!r}), fcntl.LOCK_SH)"
    )
    follower.start(sys.executable, "-c", script)
    following = follower.following()
    until(lambda: follower.text == "one\ntwo\nthree\n")
    gate.open()
    assert following.result().succeeded


def test_bytes_that_are_not_utf8_and_lines_without_end_come_through(follower: Follower) -> None:
    follower.start("sh", "-c", r"printf 'caf\303\251 \377\376 %s' 'no newline'; printf '\303'")
    assert follower.follow().succeeded
    assert follower.text == "café \ufffd\ufffd no newline\ufffd"


def test_much_output_comes_whole_and_memory_does_not_grow(follower: Follower) -> None:
    size, total, tail = 40_000_000, 0, ""
    follower.start("sh", "-c", f"yes 'a line of output' | head -c {size}; echo; echo end")

    def write(text: str) -> None:
        nonlocal total, tail
        total += len(text)
        tail = (tail + text)[-10:]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert follower.training.follow(write).succeeded
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 25_000  # kB
    assert (total, tail[-5:]) == (size + 5, "\nend\n")


def test_what_a_login_shell_prints_is_no_output_of_the_training(
    host: SshHost, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "greeting", "echo state: running; echo Welcome;")
    assert follower.start("echo", "only this")
    assert follower.follow().succeeded
    assert follower.text == "only this\n"
    assert follower.training.stop() is not None


def test_following_can_begin_anywhere_and_tells_the_end_again(follower: Follower) -> None:
    follower.start("sh", "-c", "printf 0123456789; exit 3")
    assert follower.follow() == follower.follow(offset=4)
    assert follower.text == "0123456789456789"


def test_the_last_lines_are_told(follower: Follower) -> None:
    follower.start("sh", "-c", "seq 1 30000")
    follower.follow()
    assert follower.training.last_lines(3) == ["29998", "29999", "30000"]
    assert len(follower.training.last_lines(100_000)) < 15_000, "of long outputs only the end is fetched"
