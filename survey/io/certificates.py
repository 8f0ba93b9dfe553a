"""An authority of one's own and certificates for a cluster's scheduler, workers and clients."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROLES = ("scheduler", "worker", "client")
DAYS = 825


class CertificateError(ValueError):
    """Certificates that cannot be made."""


def make_certificates(
    directory: str | Path, hosts: Sequence[str] = (), *, days: int = DAYS, renew: bool = False
) -> list[Path]:
    """Make ``ca.pem`` and, for scheduler, worker and client, a certificate and a key.

    Whoever holds a certificate of this authority may run code on the cluster. A host needs ``ca.pem`` and the
    two files of its role; ``ca-key.pem`` makes further certificates and belongs on no host of the cluster.

    Parameters
    ----------
    directory : path
        Where they go; files there are for the owner's eyes only.
    hosts : sequence of str
        Names and addresses of the scheduler, besides this host's and the loopback ones.
    days : int
        How long they are valid.
    renew : bool
        Make new certificates with the authority that is there; without it nothing is overwritten.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    CertificateError
        If there are certificates already, or the ``tls`` extra is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise CertificateError("making certificates needs cryptography: pip install 'survey[tls]'") from None
    folder = Path(directory)
    halves = [file.exists() for file in (folder / "ca.pem", folder / "ca-key.pem")]
    there = any(halves)
    if there and renew and not all(halves):
        raise CertificateError(
            f"{folder}: ca.pem or ca-key.pem is missing; without both nothing can be renewed: restore it, or "
            "make an authority of another directory"
        )
    if there and not renew:
        raise CertificateError(
            f"{folder}: holds certificates already; --renew makes new ones, same authority"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    written = []
    if there:
        authority, key = _load_authority(folder)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("survey cluster authority")
        authority = _certificate(name, key.public_key(), name, key, days, hosts=(), is_authority=True)
        written += _write(folder, "ca", authority, key)
    for role in ROLES:
        own = ec.generate_private_key(ec.SECP256R1())
        named = _certificate(
            _name(f"survey {role}"), own.public_key(), authority.subject, key, days, hosts=hosts
        )
        written += _write(folder, role, named, own)
    return written


def _name(common: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _load_authority(folder: Path) -> tuple[Any, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key((folder / "ca-key.pem").read_bytes(), password=None)
    return x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()), key


def _certificate(
    subject: Any,
    public_key: Any,
    issuer: Any,
    signer: Any,
    days: int,
    *,
    hosts: Sequence[str],
    is_authority: bool = False,
) -> Any:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks of a cluster differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if not is_authority:
        names = [_host(h) for h in dict.fromkeys([*hosts, socket.gethostname(), "localhost", "127.0.0.1"])]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _host(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(folder: Path, name: str, certificate: Any, key: Any) -> list[Path]:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files = [folder / f"{name}.pem", folder / f"{name}-key.pem"]
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    # Never readable by others, not even between its making and a chmod; also where there was a lax one.
    files[1].unlink(missing_ok=True)
    handle = os.open(files[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(secret)
    return files
