"""When certificates end, read from their PEM files with the standard library alone.

Python's ssl module tells a certificate's dates only of a peer's or a CA's, so the few bytes of DER (X.690) before the
validity (RFC 5280, 4.1) are stepped over here; a dependency that parses all of X.509 would be the larger risk.
"""

import re
import ssl
from datetime import UTC, datetime
from typing import Final

_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def expiries(pem: str) -> list[float]:
    """Seconds since 1970 UTC at which the certificates in ``pem`` end, in their order; :class:`ValueError` if bad."""
    return [not_after(ssl.PEM_cert_to_DER_cert(block)) for block in _PEM.findall(pem)]


def not_after(der: bytes) -> float:
    """The end of one certificate's validity; :class:`ValueError` if the bytes are none."""
    certificate, _ = _element(der, 0, _SEQUENCE)
    fields, _ = _element(certificate, 0, _SEQUENCE)
    at = 0
    if fields[:1] == bytes([_VERSION]):
        _, at = _element(fields, at)
    for _ in ("serial number", "signature", "issuer"):
        _, at = _element(fields, at)
    validity, _ = _element(fields, at, _SEQUENCE)
    _, at = _element(validity, 0)
    tag = validity[at] if at < len(validity) else -1
    text, _ = _element(validity, at)
    return _time(tag, text.decode("ascii"))


def _element(data: bytes, at: int, tag: int | None = None) -> tuple[bytes, int]:
    """The contents of the element at ``at``, and where the next begins."""
    head = data[at:at + 2]
    if len(head) < 2 or (tag is not None and head[0] != tag):
        raise ValueError("this is no certificate in DER")
    size, at = head[1], at + 2
    if size & 0x80:
        count = size & 0x7F
        size, at = int.from_bytes(data[at:at + count], "big"), at + count
    if at + size > len(data):
        raise ValueError("a certificate in DER is cut off")
    return data[at:at + size], at + size


def _time(tag: int, text: str) -> float:
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("a certificate has no end of its validity")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
