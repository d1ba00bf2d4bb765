"""The cloud-init user-data of an instance: its own SSH host key, and its own deadline.

Everything in here works on the machine alone. It needs neither SSH nor an orchestrator that lives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

# cloud-init runs `bootcmd` at every boot, early, in /bin/sh, and waits for it: hence the background.
# The loop outlives cloud-init under systemd: its units either stay active once they are done
# (RemainAfterExit) or kill their main process only (KillMode=process in cloud-init-main.service).
# It asks for the time anew each round, so a clock that is set late, or jumps, is believed. One that is set back gains
# little: the time since the boot, which nobody can set, ends it as well (where there is a /proc).
_POWER_OFF = (
    "nohup sh -c 'up() {{ cut -d. -f1 /proc/uptime 2>/dev/null || echo 0; }}; end=$(($(up) + {seconds})); "
    'while [ "$(date +%s)" -lt {epoch} ] && [ "$(up)" -lt "$end" ]; do sleep 10; done; '
    "shutdown -P now || poweroff -f' </dev/null >/dev/null 2>&1 &"
)
_SPARE_SECONDS = 60
"""So that a clock that is right comes first."""

HTTPS_PORT = 443
"""What gets out of networks that let nothing but the web out; on any other SSH_PORT the image's own server listens."""

# Before the SSH server starts. Where systemd listens for it (Ubuntu since 22.10), the port is the socket's: newer ones
# derive it from sshd_config at boot, in addresses.conf, which is read after ours and replaces what that says.
_LISTEN_ON_HTTPS_PORT = """port=/etc/ssh/sshd_config.d/00-orchestrator.conf
if [ ! -e "$port" ]; then
  mkdir -p /etc/ssh/sshd_config.d /etc/systemd/system/ssh.socket.d
  printf 'Port 443\\n' >"$port"
  if ! grep -qsi '^[[:space:]]*Include[[:space:]]*/etc/ssh/sshd_config.d/' /etc/ssh/sshd_config; then
    { printf 'Include %s\\n' "$port"; cat /etc/ssh/sshd_config; } >/etc/ssh/sshd_config.new
    mv /etc/ssh/sshd_config.new /etc/ssh/sshd_config
  fi
  printf '[Socket]\\nListenStream=\\nListenStream=0.0.0.0:443\\n' >/etc/systemd/system/ssh.socket.d/00-orchestrator.conf
  systemctl daemon-reload
  if systemctl is-active --quiet ssh.socket; then
    systemctl stop ssh.service
    systemctl restart ssh.socket
  else
    systemctl --no-block try-restart ssh.service sshd.service
  fi
fi"""


@dataclass(frozen=True)
class HostKey:
    """An SSH host key that is made for one instance, so that its first connection is already verified.

    Attributes:
        private: the private key, in OpenSSH's text format.
        public: the public key as one line, `ssh-ed25519 AAAA...`.
    """

    private: str = field(repr=False)
    public: str

    @classmethod
    def generate(cls) -> Self:
        """Make a new ed25519 key."""
        key = Ed25519PrivateKey.generate()
        return cls(
            private=key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
            public=key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
        )


def cloud_config(*, host_key: HostKey, deadline: datetime, training_user: str | None = None, ssh_port: int = 22) -> str:
    """Render the user-data: the host key to install, when to power off, and to let us in on port 443.

    With InstanceInitiatedShutdownBehavior=terminate, powering off ends the instance and its costs.
    No other host key is generated when `ssh_keys` is given, and the image's own ones are deleted:
    https://docs.cloud-init.io/en/latest/reference/modules.html (modules Bootcmd and SSH).

    Args:
        host_key: what the machine's SSH server shall answer with.
        deadline: when the machine powers itself off, whatever happens; with a time zone.
        training_user: a login to make besides the image's own, without sudo; None: none.
        ssh_port: where the SSH server is to listen, if that is 443; on another one the image's own does.

    Returns:
        A `#cloud-config` document, about 1 KB (EC2 takes 16 KB at most).
    """
    seconds = math.ceil((deadline - datetime.now(UTC)).total_seconds()) + _SPARE_SECONDS
    power_off = _POWER_OFF.format(epoch=math.ceil(deadline.timestamp()), seconds=seconds)
    config: dict[str, object] = {
        "bootcmd": [power_off],
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
    }
    if ssh_port == HTTPS_PORT:
        config["bootcmd"] = [power_off, _LISTEN_ON_HTTPS_PORT]
    if training_user:
        config["users"] = ["default", {"name": training_user, "lock_passwd": True}]
    return "#cloud-config\n" + yaml.safe_dump(config, width=math.inf)
