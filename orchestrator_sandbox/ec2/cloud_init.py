"""The part of cloud-init that the sandbox's machines have: reads the user-data of an instance.

Host keys, `bootcmd`, `runcmd`, `ssh_authorized_keys` and plain `#!` scripts do what they do in cloud-init
(https://docs.cloud-init.io/en/latest/reference/modules.html). Everything else is named in the log.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

# The names are cloud-init's; the order, in which the keys are offered, does not matter.
HOST_KEYS = ("ed25519_private", "ecdsa_private", "rsa_private")
KNOWN = {"bootcmd", "runcmd", "ssh_keys", "ssh_deletekeys", "ssh_authorized_keys"}


@dataclass(frozen=True)
class CloudConfig:
    """What the user-data asks for.

    Attributes:
        host_keys: private SSH host keys; empty: the machine makes one itself.
        authorized_keys: public keys that may log in, besides that of the EC2 key pair.
        boot_script: shell script run at every boot, before SSH answers; "" for none.
        first_boot_script: shell script run after the first boot, when SSH answers; "" for none.
        remarks: what was not understood or is not supported, for the log.
    """

    host_keys: tuple[str, ...] = ()
    authorized_keys: tuple[str, ...] = ()
    boot_script: str = ""
    first_boot_script: str = ""
    remarks: tuple[str, ...] = ()


def parse(user_data: str) -> CloudConfig:
    """Read user-data as cloud-init would: what it does not understand, it logs, and boots on."""
    if not user_data.strip():
        return CloudConfig()
    if user_data.startswith("#!"):
        return CloudConfig(first_boot_script=user_data)
    if not user_data.startswith("#cloud-config"):
        return CloudConfig(remarks=("the user-data is neither #cloud-config nor a #! script: ignored",))
    try:
        config = yaml.safe_load(user_data) or {}
        if not isinstance(config, Mapping):
            raise TypeError("it is not a mapping")
        keys = config.get("ssh_keys") or {}
        return CloudConfig(
            host_keys=tuple(str(keys[name]) for name in HOST_KEYS if name in keys),
            authorized_keys=tuple(str(key) for key in config.get("ssh_authorized_keys") or ()),
            boot_script=shellify(config.get("bootcmd") or ()),
            first_boot_script=shellify(config.get("runcmd") or ()),
            remarks=tuple(f"{name}: the sandbox does not support it: ignored" for name in config if name not in KNOWN),
        )
    except (yaml.YAMLError, TypeError) as error:
        return CloudConfig(remarks=(f"the user-data cannot be used ({error}): ignored",))


def shellify(commands: Sequence[str | Sequence[str] | None]) -> str:
    """Make one script of a list of commands, as cloud-init's `util.shellify` does.

    Args:
        commands: text is shell, a list is one command with its arguments.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(commands, str) or not isinstance(commands, Sequence):
        raise TypeError("commands must be a list")
    lines = []
    for command in commands:
        if isinstance(command, str):
            lines.append(command)
        elif isinstance(command, Sequence):
            lines.append(shlex.join(str(word) for word in command))
        elif command is not None:
            raise TypeError(f"{command!r} is no command")
    return "\n".join(["#!/bin/sh", *lines, ""]) if lines else ""
