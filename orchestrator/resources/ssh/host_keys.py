"""Which host key is accepted: the one that was planted, the first one seen, or one of a known_hosts file."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterator
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys, InvalidHostKey

from orchestrator.errors import HostKeyMismatch, SshError
from orchestrator.settings.groups import SshSettings


class HostTrust:
    """The host keys that one address may show, by SSH_HOST_KEYS.

    Args:
        settings: the policy (`planted`, `accept-new`, `known_hosts`), the port, the file.
        address: host name or IP address.
        host_key: the key given to the instance through cloud-init, as `ssh-ed25519 AAAA...`.

    Raises:
        SshError: there is nothing to compare with: no planted key, no entry in known_hosts.
    """

    def __init__(self, settings: SshSettings, *, address: str, host_key: str | None) -> None:
        self._host = f"{address} port {settings.port}"
        self._accept_new = settings.host_keys == "accept-new"
        self._keys: list[paramiko.PKey] = []
        if settings.host_keys == "planted":
            self._keys = [_planted(address, host_key)]
        elif settings.host_keys == "known_hosts":
            path = _known_hosts(settings)
            self._keys = list(_known(path, address=address, port=settings.port))
            if not self._keys:
                raise SshError(f"no key of {self._host} in {path}: add it (ssh-keyscan), or use SSH_HOST_KEYS=planted")

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The host key algorithms to ask the host for; empty when any will do."""
        names = dict.fromkeys(key.get_name() for key in self._keys)
        return tuple(
            algorithm
            for name in names
            # An RSA key signs with SHA-2 under these names: https://www.rfc-editor.org/rfc/rfc8332
            for algorithm in (("rsa-sha2-512", "rsa-sha2-256") if name == "ssh-rsa" else (name,))
        )

    def verify(self, host_key: paramiko.PKey) -> None:
        """Accept or refuse the key that the host has shown; `accept-new` remembers the first.

        Raises:
            HostKeyMismatch: it is another key.
        """
        if self._accept_new and not self._keys:
            self._keys.append(host_key)
        if not any(hmac.compare_digest(host_key.asbytes(), key.asbytes()) for key in self._keys):
            raise self.mismatch(f"the {host_key.get_name()} key {host_key.fingerprint}")

    def mismatch(self, found: str) -> HostKeyMismatch:
        """The error for a host that showed something else.

        Args:
            found: what it showed, in words.
        """
        expected = ", ".join(f"{key.get_name()} {key.fingerprint}" for key in self._keys)
        return HostKeyMismatch(
            f"{self._host} showed {found}, not {expected}: it is not the machine that was launched, or its "
            "image takes no host key from cloud-init (then set SSH_HOST_KEYS to accept-new or known_hosts)"
        )


def require_known_hosts(settings: SshSettings) -> None:
    """Find out, while there is no host yet, that a file to compare its key with is missing.

    Raises:
        SshError: SSH_HOST_KEYS is known_hosts, and the file cannot be read.
    """
    if settings.host_keys == "known_hosts":
        _lines(_known_hosts(settings))


def _known_hosts(settings: SshSettings) -> Path:
    return (settings.known_hosts or Path("~/.ssh/known_hosts")).expanduser()


def _planted(address: str, host_key: str | None) -> paramiko.PKey:
    if host_key is None:
        raise SshError(
            f"no host key was planted on {address}, so it cannot be told from another machine; launch a new "
            "instance, or set SSH_HOST_KEYS to accept-new or known_hosts"
        )
    try:
        name, encoded, *_comment = host_key.split()
        return paramiko.PKey.from_type_string(name, base64.b64decode(encoded, validate=True))
    except (ValueError, binascii.Error, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        raise SshError(
            f"the host key planted on {address} is not a public key in OpenSSH's format: {host_key[:40]!r}"
        ) from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise SshError(
            f"the file SSH_KNOWN_HOSTS={path} cannot be read: {error.strerror}; create it with ssh-keyscan, "
            "or use SSH_HOST_KEYS=planted"
        ) from error


def _known(path: Path, *, address: str, port: int) -> Iterator[paramiko.PKey]:
    """Every key of this host in an OpenSSH known_hosts file: plain or hashed names, no patterns."""
    name = address if port == 22 else f"[{address}]:{port}"
    for line in _lines(path):
        if not line.strip() or line.lstrip().startswith(("#", "@")):
            continue
        try:
            entry = HostKeyEntry.from_line(line.strip())
        except (InvalidHostKey, paramiko.SSHException, ValueError):
            continue  # a broken line about some host says nothing about this one, as with ssh
        if entry and any(
            given == (HostKeys.hash_host(name, given) if given.startswith("|1|") else name)
            for given in entry.hostnames or ()
        ):
            yield entry.key
