"""A certificate for localhost that signs itself, and its key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate_in(folder: Path, *, passphrase: str = "") -> tuple[Path, Path]:
    """Write cert.pem and key.pem; return both."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=2))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return cert_file, key_file


def signed_in(folder: Path, *, name: str = "localhost", by: str = "The tests' authority") -> tuple[Path, Path, Path]:
    """Write ca.pem, of a new authority, and server.pem and server.key, which it has signed; return all three."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by)])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    until = now + timedelta(days=2)
    root = (
        x509.CertificateBuilder(
            authority, authority, authority_key.public_key(), x509.random_serial_number(), now, until
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        x509.CertificateBuilder(authority, subject, key.public_key(), x509.random_serial_number(), now, until)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    files = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    files[0].write_bytes(root.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[2].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


PEM = """\
-----BEGIN CERTIFICATE-----
MIIBcDCCARegAwIBAgIUQ6VhRz/P1uljruNllys5wVNCR6owCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTI3MDQxMzM3WhgPMjEyNjExMDMwNDEzMzda
MA0xCzAJBgNVBAMMAmNhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEU4X0zfph
MDME3lhJq+1eTOFUSHFpRk6P5+yGK7XIJ7eg5/hLv/TL0qOdldY9MK5SA9kl09ac
VDbt3hpKFcM2AKNTMFEwHQYDVR0OBBYEFNpl5gV2bFIzPbg9N/kS1kB402g8MB8G
A1UdIwQYMBaAFNpl5gV2bFIzPbg9N/kS1kB402g8MA8GA1UdEwEB/wQFMAMBAf8w
CgYIKoZIzj0EAwIDRwAwRAIgJOdA//VUIbc/KOHQ4YOX67EiXZzg0J8zFgQQljn+
3XkCIELJmpNAhzRYD2EiXd+3x7nthJ052/J9+O5MthPCGZDs
-----END CERTIFICATE-----
"""
"""One that nobody has the key of."""
