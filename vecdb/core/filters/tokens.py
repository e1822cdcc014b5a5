"""The words of a filter expression: tokens with their places, or an error at one.

    path      name{.name}, name = letter or _, then letters, digits, _ and - (not last), or a key in backticks
    number    [+-] digits [. digits] [e [+-] digits]        string  '…' or "…"
    operator  == != < <= > >= && || ! ( ) [ ] ,

In strings and backticks a backslash escapes: ``\\n \\t \\r \\b \\f \\0 \\/ \\\\``, the three quotes, and ``\\uHHHH``
(pairs of surrogates as in JSON).
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from vecdb.core.errors import InvalidFilter
from vecdb.core.filters.paths import check_path, join_path

NAME = re.compile(r"[^\W\d](?:[\w\-]*\w)?")
_REST = re.compile(r"\w(?:[\w\-]*\w)?")
_NUMBER = re.compile(r"[+-]?(?:(\d+)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_BLANK = re.compile(r"\s*")
_PLAIN = {quote: re.compile(rf"[^\\{quote}]*") for quote in "'\"`"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "/": "/", "\\": "\\", "'": "'",
            '"': '"', "`": "`"}
_OPERATORS = ("==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "(", ")", "[", "]", ",")
_HINTS = {"=": "write == to compare", "&": "write 'and' or &&", "|": "write 'or' or ||",
          "~": "write 'not' or !", "*": "there is no arithmetic and there are no wildcards; see prefix and contains",
          "%": "there are no wildcards; see prefix and contains", "$": "quote such a key in backticks",
          "{": "the mapping form is given as a dict, not as text"}
_MAX_DIGITS = 1_000

RESERVED = frozenset(("and", "or", "not", "in", "is", "null", "true", "false"))
CONTEXTUAL = frozenset(("exists", "contains", "startswith", "prefix", "time", "geo_radius", "geo_box"))


@dataclass(frozen=True, slots=True)
class Token:
    """``kind``: path, word (a keyword or a function, lower case), string, number, op or end; ``at``: its offset."""

    kind: str
    value: Any
    at: int
    text: str = ""


def tokenize(text: str) -> list[Token]:
    """Return the tokens of ``text``, ``end`` last, or raise :class:`InvalidFilter` at the first bad character."""
    tokens: list[Token] = []
    at = 0
    while True:
        at = _end(_BLANK, text, at)
        if at >= len(text):
            tokens.append(Token("end", None, len(text), "the end"))
            return tokens
        char = text[at]
        if char in "'\"":
            string, end = _quoted(text, at)
            tokens.append(Token("string", string, at, text[at:end]))
        elif char == "`" or NAME.match(text, at):
            token, end = _path(text, at)
            tokens.append(token)
        elif char in "+-.0123456789":
            value, end = _number(text, at)
            tokens.append(Token("number", value, at, text[at:end]))
        else:
            operator = next((op for op in _OPERATORS if text.startswith(op, at)), None)
            if operator is None:
                hint = _HINTS.get(char)
                raise InvalidFilter(f"unexpected character {char!r}" + (f": {hint}" if hint else ""), position=at,
                                    got=char, limit="a path, a value or an operator")
            end = at + len(operator)
            tokens.append(Token("op", operator, at, operator))
        at = end


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _path(text: str, start: int) -> tuple[Token, int]:
    keys: list[str] = []
    quoted = False
    at = start
    while True:
        if text[at : at + 1] == "`":
            key, at = _quoted(text, at)
            quoted = True
        else:
            end = _end(NAME if not keys else _REST, text, at)
            if end == at:
                raise InvalidFilter("a path ends in a dot" if at == len(text) else
                                    f"{text[at]!r} cannot start a key; quote the key in backticks", position=at,
                                    got=text[start:at][:40], limit="key{.key}")
            key, at = text[at:end], end
        keys.append(key)
        if text[at : at + 1] != ".":
            break
        at += 1
    lower = keys[0].lower()
    if len(keys) == 1 and not quoted and (lower in RESERVED or lower in CONTEXTUAL):
        return Token("word", lower, start, text[start:at]), at
    check_path(join_path(keys), start)
    return Token("path", join_path(keys), start, text[start:at]), at


def _number(text: str, at: int) -> tuple[int | float, int]:
    found = _NUMBER.match(text, at)
    if found is None:
        raise InvalidFilter(f"{text[at]!r} is followed by no digit; there is no arithmetic in a filter", position=at,
                            got=text[at], limit="a number")
    end = found.end()
    if end < len(text) and (text[end].isalnum() or text[end] in "_."):
        raise InvalidFilter(f"a number cannot be followed by {text[end]!r}", position=end, got=text[at : end + 1],
                            limit="a number")
    if end - at > _MAX_DIGITS:
        raise InvalidFilter(f"a number of {end - at} characters is too long", position=at, got=end - at,
                            limit=_MAX_DIGITS)
    if found[1] is not None and found[2] is None and found[3] is None:
        return int(found[0]), end
    real = float(found[0])
    if math.isinf(real):
        raise InvalidFilter(f"the number {found[0][:40]} is beyond the range of a float", position=at,
                            got=found[0][:40], limit="finite")
    return real, end


def _quoted(text: str, start: int) -> tuple[str, int]:
    """Read the string or quoted key that starts at ``start``; return it and the offset behind its closing quote."""
    quote = text[start]
    parts: list[str] = []
    at = start + 1
    while True:
        end = _end(_PLAIN[quote], text, at)
        parts.append(text[at:end])
        if end >= len(text):
            raise InvalidFilter(f"the string that starts here has no closing {quote}", position=start,
                                got=text[start : start + 20], limit=f"…{quote}")
        if text[end] == quote:
            return _joined(parts, start), end + 1
        char = text[end + 1 : end + 2]
        if char == "u":
            digits = text[end + 2 : end + 6]
            if len(digits) < 4 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                raise InvalidFilter("\\u needs four hexadecimal digits", position=end, got="\\u" + digits,
                                    limit="\\uHHHH")
            parts.append(chr(int(digits, 16)))
            at = end + 6
        elif char and char in _ESCAPES:
            parts.append(_ESCAPES[char])
            at = end + 2
        else:
            raise InvalidFilter(f"unknown escape \\{char}; a backslash itself is written \\\\", position=end,
                                got="\\" + char, limit="\\n \\t \\r \\b \\f \\0 \\/ \\\\ \\' \\\" \\` \\uHHHH")


def _joined(parts: list[str], start: int) -> str:
    whole = "".join(parts)
    try:
        # Two halves of a pair, each written \uHHHH, become the character they stand for
        return whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise InvalidFilter("a string must be valid Unicode (it holds a lone surrogate)", position=start,
                            got="str", limit="UTF-8") from None
