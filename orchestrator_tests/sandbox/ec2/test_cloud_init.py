"""User-data is read as cloud-init reads it, and reaches the sandbox's machine only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_sandbox.ec2 import cloud_init, power


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=50).flatmap(lambda text: st.sampled_from([text, f"#!{text}", f"#cloud-config\n{text}"])))
def test_any_user_data_can_be_read(text: str) -> None:
    cloud_init.parse(text)


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("Content-Type: multipart/mixed", "neither"),
        ("#cloud-config\n- a list", "not a mapping"),
        ("#cloud-config\nbootcmd: text", "must be a list"),
        ("#cloud-config\nbootcmd: [{a: b}]", "is no command"),
        ("#cloud-config\nusers: [default]", "users: the sandbox does not support it"),
    ],
)
def test_user_data_that_cannot_be_used_is_remarked(text: str, remark: str) -> None:
    assert remark in cloud_init.parse(text).remarks[0]


def test_a_script_as_user_data_runs_at_the_first_boot() -> None:
    assert cloud_init.parse("#!/bin/sh\ntrue").first_boot_script == "#!/bin/sh\ntrue"


def test_commands_become_a_script_as_in_cloud_init() -> None:
    assert cloud_init.shellify(["a && b", ["c", "d e"], None]) == "#!/bin/sh\na && b\nc 'd e'\n"


@pytest.mark.parametrize(
    ("command", "meaning"),
    [
        ("shutdown", power.Off(1)),
        ("shutdown -P +5", power.Off(5)),
        ("shutdown -r now", power.Off(0, reboot=True)),
        ("shutdown -c", power.Cancelled()),
        ("shutdown 23:15", None),
        ("poweroff -f", power.Off()),
        ("halt", power.Off()),
        ("reboot", power.Off(reboot=True)),
        ("init 3", None),
        ("telinit 6", power.Off(reboot=True)),
        ("systemctl reboot", power.Off(reboot=True)),
        ("systemctl start docker", None),
    ],
)
def test_the_power_programs_mean_what_they_mean(command: str, meaning: power.Off | None) -> None:
    program, *arguments = command.split()
    assert power.meaning(program, arguments) == meaning


def test_a_script_cannot_switch_off_the_computer_that_the_sandbox_runs_on() -> None:
    script = "/sbin/shutdown now || /usr/bin/systemctl poweroff; echo o > /proc/sysrq-trigger; /opt/sbin/halt"
    assert power.contained(script, Path("/m/sbin")) == (
        "/m/sbin/shutdown now || /m/sbin/systemctl poweroff; echo o > /dev/null; /opt/sbin/halt"
    )
