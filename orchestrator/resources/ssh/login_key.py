"""The private key that we log in with: read from KEY_PATH, whatever its format, with clear complaints."""

from __future__ import annotations

import io
import logging
import stat
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from orchestrator.errors import SshRefused
from orchestrator.settings.groups import SshSettings

_log = logging.getLogger(__name__)
_NOT_PRIVATE = (
    (b"PuTTY-User-Key-File", "is a PuTTY key; convert it: puttygen key.ppk -O private-openssh -o key.pem"),
    (b"PUBLIC KEY", "is a public key; KEY_PATH must name the private half of KEY_PAIR_NAME"),
    (b"ssh-", "is a public key; KEY_PATH must name the private half of KEY_PAIR_NAME"),
    (b"ecdsa-", "is a public key; KEY_PATH must name the private half of KEY_PAIR_NAME"),
)
_CLASSES: dict[type, type[paramiko.PKey]] = {
    rsa.RSAPrivateKey: paramiko.RSAKey,
    ec.EllipticCurvePrivateKey: paramiko.ECDSAKey,
    ed25519.Ed25519PrivateKey: paramiko.Ed25519Key,
}


def private_key(settings: SshSettings) -> paramiko.PKey:
    """Read the key of KEY_PATH: RSA, ECDSA or Ed25519, in PEM (PKCS#1, PKCS#8, SEC1) or OpenSSH format.

    `ssh` refuses a key file that others may read. We only warn: mounted secrets of containers often
    cannot be made private.

    Raises:
        SshRefused: the file is missing, unreadable, no private key, or KEY_PASSPHRASE does not open it.
    """
    path = settings.key_path.expanduser()
    passphrase = settings.key_passphrase.get_secret_value().encode() if settings.key_passphrase else None
    data = _content(path)
    loaded = _loaded(path, data, passphrase)
    for kind, key_class in _CLASSES.items():
        if isinstance(loaded, kind):
            # paramiko reads no PKCS#8; in OpenSSH's format it reads them all.
            text = loaded.private_bytes(  # type: ignore[attr-defined]
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
            return key_class.from_private_key(io.StringIO(text.decode("ascii")))
    raise SshRefused(f"the key KEY_PATH={path} is neither RSA, ECDSA nor Ed25519; use a key of these kinds")


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise SshRefused(f"there is no file {path}; set KEY_PATH to the private key of KEY_PAIR_NAME") from error
    except OSError as error:
        raise SshRefused(f"the private key KEY_PATH={path} cannot be read: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        _log.warning(f"Private key KEY_PATH={path} can be read by others; chmod 600 it")
    return data


def _loaded(path: Path, data: bytes, passphrase: bytes | None) -> object:
    if b"PRIVATE KEY-----" not in data:
        for mark, complaint in _NOT_PRIVATE:
            if mark in data[:200]:
                raise SshRefused(f"KEY_PATH={path} {complaint}")
        raise SshRefused(f"KEY_PATH={path} is not a private key in PEM or OpenSSH format")
    load = serialization.load_ssh_private_key if b"-----BEGIN OPENSSH " in data else serialization.load_pem_private_key
    try:
        try:
            return load(data, passphrase)
        except TypeError as error:  # a passphrase is missing, or given and not needed
            if passphrase is None:
                raise SshRefused(f"the private key KEY_PATH={path} is protected; set KEY_PASSPHRASE") from error
            return load(data, None)
    except (ValueError, UnsupportedAlgorithm) as error:
        doubt = "KEY_PASSPHRASE is wrong, or the file is damaged" if passphrase else "the file is damaged"
        raise SshRefused(f"the private key KEY_PATH={path} cannot be used: {doubt}") from error
