"""The certificate that we show a server which asks for one, looked at before anything is sent."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from orchestrator.errors import SettingsError


def read_client_certificate(path: Path, *, setting: str) -> str:
    """The text of a PEM file with a certificate and its key.

    Looked at early, because with a protected key OpenSSL would ask the terminal for a passphrase, at each connection.

    Raises:
        SettingsError: there is no such file, or no server can be shown what is in it.
    """
    try:
        text = path.read_text(encoding="ascii", errors="surrogateescape")
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read ({error.strerror})") from error
    certificate = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    missing = [
        name for name, found in (("certificate", certificate), ("private key", "PRIVATE KEY-----" in text)) if not found
    ]
    if missing or certificate is None:
        raise SettingsError(
            f"{setting}: {path} holds no {' and no '.join(missing)} in PEM format; put both into this one file"
        )

    def refuse() -> str:
        raise SettingsError(
            f"{setting}: the key in {path} is protected by a passphrase, which no setting gives; write it without, "
            "by `openssl pkey`, and let only the orchestrator read the file"
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path, password=refuse)
        expiry = x509.load_pem_x509_certificate(certificate[0].encode("ascii", "surrogateescape")).not_valid_after_utc
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "not readable"
        if reason == "KEY_VALUES_MISMATCH":
            reason = "the key is not that of the first certificate"
        raise SettingsError(f"{setting}: {path} holds no usable certificate and key ({reason})") from error
    if expiry < datetime.now(UTC):
        raise SettingsError(f"{setting}: the certificate in {path} has expired on {expiry:%Y-%m-%d}; renew it")
    return text
