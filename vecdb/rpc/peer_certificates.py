"""Certificates for the nodes of a cluster: made here for those who have no authority of their own, and checked.

:func:`issue` makes an authority for one cluster and a certificate for each node (P-256, ECDSA with SHA-256), or takes
the authority that the folder holds already, so that nodes can be added and certificates be renewed.  ``ca.key`` is
needed on no node: keep it elsewhere.
"""

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol

from vecdb.core.errors import InvalidArgument
from vecdb.core.nodes import check_label
from vecdb.ports.clock import Clock
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.rpc.peer_names import certificate_name, certified, named
from vecdb.rpc.tls import Certificates

CA_DAYS: Final = 3_650
NODE_DAYS: Final = 825
_BEFORE: Final = datetime.timedelta(hours=1)
"""Certificates are good a little earlier than they are made: clocks differ."""


class PeerTlsFiles(Protocol):
    """What is read of :class:`vecdb.config.ClusterSettings`."""

    @property
    def name(self) -> str: ...

    @property
    def cert_file(self) -> Path | None: ...

    @property
    def key_file(self) -> Path | None: ...

    @property
    def ca_file(self) -> Path | None: ...


@dataclass(frozen=True, slots=True)
class _Files:
    cert_file: Path | None
    key_file: Path | None
    client_ca_file: Path | None
    reload_s: float


def open_peer_certificates(cluster: PeerTlsFiles, node: str, clock: Clock, tell: Tell = tell_nobody,
                           reload_s: float = 10.0) -> Certificates | None:
    """A node's certificate as the settings name its files, for both ends of peer connections; None without any.

    Raises :class:`InvalidArgument` naming the setting, also where the certificate is not this node's.  Files that
    change are loaded anew under the same checks.
    """
    if cluster.cert_file is None and cluster.key_file is None and cluster.ca_file is None:
        return None
    for name in ("cert_file", "key_file", "ca_file"):
        if getattr(cluster, name) is None:
            raise InvalidArgument(f"settings.cluster.{name}", "is needed with the other two", got=None,
                                  limit="cert_file, key_file and ca_file")

    def check(chain: bytes) -> None:
        names = dns_names(chain)
        if node not in certified(names, cluster.name):
            raise InvalidArgument("settings.cluster.cert_file", f"{cluster.cert_file} is no certificate of this node, "
                                  f"{node!r} of cluster {cluster.name!r}: {_whose(names)}", got=names[:8],
                                  limit=certificate_name(node, cluster.name))

    files = _Files(cluster.cert_file, cluster.key_file, cluster.ca_file, reload_s)
    return Certificates(files, clock, tell, check=check, section="cluster", ca_name="ca_file")


def _whose(names: Sequence[str]) -> str:
    """Of whom a certificate with these DNS names is, in words."""
    found = [f"{node!r} of cluster {cluster!r}" for node, cluster in map(named, names) if node]
    if found:
        return f"it is that of {', '.join(found[:3])}"
    return f"its names are {', '.join(names[:3])}" if names else "it has no DNS name"


def dns_names(chain: bytes) -> list[str]:
    """The DNS names in the SAN of the first certificate of a PEM file."""
    from cryptography import x509  # takes a while, and only clusters with TLS need it

    try:
        found = x509.load_pem_x509_certificate(chain).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound):
        return []
    return found.value.get_values_for_type(x509.DNSName)


def issue(folder: Path | str, cluster: str, nodes: Sequence[str], hosts: Mapping[str, Sequence[str]] | None = None, *,
          renew: bool = False, days: int = NODE_DAYS, to: Path | None = None) -> list[Path]:
    """Write ``ca.pem`` and ``ca.key``, unless they are there, and for each node ``NODE.pem`` and ``NODE.key``, these
    in the folder ``to`` if one is given.

    ``hosts``: by node, DNS names and IP addresses that its certificate has beside the node's own name, for other
    programs; nodes do not need them.  A node's files that are there are kept unless ``renew``.  Returns what was
    written.  Raises :class:`InvalidArgument`, before anything is written.
    """
    for name, what in ((cluster, "cluster"), *((node, "node") for node in nodes)):
        try:
            check_label(name, what)
        except ValueError as error:
            raise InvalidArgument(what, str(error), got=name[:80]) from None
    folder = Path(folder)
    missing = [node for node in dict.fromkeys(nodes) if renew or not (folder / f"{node}.pem").exists()
               or not (folder / f"{node}.key").exists()]
    strangers = sorted(set(hosts or {}) - set(nodes))
    if strangers:
        raise InvalidArgument("hosts", "names nodes that are not asked for", got=strangers[:8], limit=sorted(nodes))
    alternatives = {node: _alternatives(node, cluster, (hosts or {}).get(node, ())) for node in missing}
    written: list[Path] = []
    authority = _Authority.open(folder, cluster, written)
    for node in missing:
        authority.issue(to or folder, node, alternatives[node], days, written)
    return written


def _alternatives(node: str, cluster: str, hosts: Sequence[str]) -> Any:
    from cryptography import x509

    names: list[Any] = [x509.DNSName(certificate_name(node, cluster))]
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ip_address(host.strip("[]"))))
            continue
        except ValueError:
            pass
        try:
            names.append(x509.DNSName(host))
        except ValueError:
            raise InvalidArgument("hosts", f"{host[:80]!r} is neither a DNS name nor an IP address", got=host[:80]) \
                from None
    return x509.SubjectAlternativeName(names)


class _Authority:
    """A cluster's own CA."""

    def __init__(self, certificate: Any, key: Any) -> None:
        self._certificate, self._key = certificate, key

    @classmethod
    def open(cls, folder: Path, cluster: str, written: list[Path]) -> "_Authority":
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        certificate_file, key_file = folder / "ca.pem", folder / "ca.key"
        if not certificate_file.exists() and not key_file.exists():
            return cls._make(folder, cluster, written)
        try:
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise InvalidArgument("folder", f"{folder} holds an authority that cannot be used: {error}",
                                  got=str(folder), limit="ca.pem and ca.key, or neither") from None
        if certificate.subject != _subject(cluster):
            raise InvalidArgument("folder", f"{folder} holds the authority of another cluster",
                                  got=certificate.subject.rfc4514_string(), limit=_subject(cluster).rfc4514_string())
        if key.public_key() != certificate.public_key():
            raise InvalidArgument("folder", f"{key_file} does not belong to {certificate_file}", got=str(folder))
        return cls(certificate, key)

    @classmethod
    def _make(cls, folder: Path, cluster: str, written: list[Path]) -> "_Authority":
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(cluster)
        built = _begin(subject, subject, key.public_key(), CA_DAYS) \
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True) \
            .add_extension(_usage(signs=True), critical=True)
        certificate = _sign(built, key)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "ca.key", _key_pem(key), 0o600, written)
        _write(folder / "ca.pem", _pem(certificate), 0o644, written)
        return cls(certificate, key)

    def issue(self, folder: Path, node: str, names: Any, days: int, written: list[Path]) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
        built = _begin(subject, self._certificate.subject, key.public_key(), days) \
            .add_extension(names, critical=False) \
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True) \
            .add_extension(_usage(signs=False), critical=True) \
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                           critical=False) \
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        _write(folder / f"{node}.key", _key_pem(key), 0o600, written)
        _write(folder / f"{node}.pem", _pem(_sign(built, self._key)), 0o644, written)


def _subject(cluster: str) -> Any:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "vecdb"),
                      x509.NameAttribute(NameOID.COMMON_NAME, f"vecdb cluster {cluster}"[:64])])


def _begin(subject: Any, issuer: Any, public_key: Any, days: int) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key) \
        .serial_number(x509.random_serial_number()).not_valid_before(now - _BEFORE) \
        .not_valid_after(now + datetime.timedelta(days=days)) \
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _usage(*, signs: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(digital_signature=True, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
                         key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                         decipher_only=False)


def _sign(built: Any, key: Any) -> Any:
    from cryptography.hazmat.primitives import hashes

    return built.sign(key, hashes.SHA256())


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _key_pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _write(path: Path, data: bytes, mode: int, written: list[Path]) -> None:
    """As a whole or not at all, and readable to nobody else at any moment where it must not be."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    written.append(path)
