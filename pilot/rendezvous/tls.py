"""TLS 1.3 for the registry port: given files, or a self-signed certificate to be pinned (rendezvous room, L8)."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pilot._fast.errors import InvalidValueError
from pilot.rendezvous.config import TlsConfig
from pilot.rendezvous.sqlite_store import MEMORY

ORGANISATION: Final = "Pilot Protocol"
LIFETIME: Final = timedelta(days=365)
RENEW_BEFORE: Final = timedelta(days=30)


def server_context(config: TlsConfig, store: str) -> tuple[ssl.SSLContext, str]:
    """A TLS 1.3 server context and the lower-case hex SHA-256 of its certificate, which clients pin.

    Raises `InvalidValueError` when the files given cannot be used.
    """
    if (config.cert_file is None) != (config.key_file is None):
        raise InvalidValueError("TLS needs both a certificate file and a key file, or neither")
    if config.cert_file is not None and config.key_file is not None:
        return _load(Path(config.cert_file), Path(config.key_file))
    if store != MEMORY:
        cert_file, key_file = Path(f"{store}.crt"), Path(f"{store}.key")
        if not (key_file.exists() and _is_current(cert_file)):
            _write_self_signed(cert_file, key_file)
        return _load(cert_file, key_file)
    with tempfile.TemporaryDirectory(prefix="pilot-tls-") as directory:
        cert_file, key_file = Path(directory, "crt"), Path(directory, "key")
        _write_self_signed(cert_file, key_file)
        return _load(cert_file, key_file)


def _load(cert_file: Path, key_file: Path) -> tuple[ssl.SSLContext, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(cert_file, key_file)
        leaf = x509.load_pem_x509_certificate(cert_file.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"the TLS files {cert_file} and {key_file} cannot be used: {error}") from None
    return context, hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest()


def _is_current(cert_file: Path) -> bool:
    try:
        leaf = x509.load_pem_x509_certificate(cert_file.read_bytes())
    except (OSError, ValueError):
        return False
    return leaf.not_valid_after_utc - RENEW_BEFORE > datetime.now(UTC)


def _write_self_signed(cert_file: Path, key_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_private(key_file, key_pem)
    _write_private(cert_file, _self_signed(key).public_bytes(serialization.Encoding.PEM))


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION)])
    now = datetime.now(UTC)
    alternatives = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def _write_private(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all, readable by its owner only."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
