"""Why another node is not reached, in few words, of what gRPC says in many."""

import re
from typing import Final

CHARACTERS: Final = 120
_PLACE: Final = re.compile(r"(?:ipv4|ipv6|unix|dns):\S+: ")
_WORDS: Final = (
    (re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: ([a-z -]+))?"), "TLS: its certificate is refused"),
    (re.compile("Hostname Verification|is not in peer certificate"), "TLS: its certificate is of another node"),
    (re.compile(r"Tls handshake failed.*?OPENSSL_internal:(\w+)"), "TLS fails"),
    (re.compile(r"[Hh]andshak\w+ (?:failed|error|shutdown)(?:.*?: ([^:]+))?"), "TLS fails"),
    (re.compile("Connection refused"), "connection refused"),
    (re.compile("Socket closed|Connection reset|connection reset"), "it closes the connection; with TLS, it may refuse "
     "this node's certificate"),
    (re.compile("Timeout occurred|timed out|FD shutdown|ping timeout"), "no connection in time"),
    (re.compile("DNS resolution failed|Domain name not found"), "its host name is not known"),
)


def short(text: str) -> str:
    """``text``, as a call's status has it, without addresses, which readers of the result may not be meant to know."""
    for pattern, words in _WORDS:
        found = pattern.search(text)
        if found is not None:
            more = found[1].strip().replace("_", " ").lower() if found.lastindex else ""
            return f"{words} ({more})" if more else words
    return _PLACE.sub("", text.rpartition("last error: ")[2]).strip()[:CHARACTERS]
