"""Filter expressions: precedence parser, no recursion beyond the filter's depth limit.

    expression  := and-part {or and-part}                       or is also ||
    and-part    := not-part {and not-part}                      and is also &&
    not-part    := not not-part | primary                       not is also !
    primary     := ( expression ) | true | false | condition
    condition   := operand op operand {op operand}              2000 <= year < 2010 is both comparisons
                 | path [not] in [value, …] | value [not] in path
                 | exists path | path [not] exists | path is [not] null
                 | path [not] startswith 'x' | path [not] contains 'x' | prefix(path, 'x') | contains(path, 'x')
                 | geo_radius(path, lat, lon, metres) | geo_box(path, south, west, north, east)
    operand     := path | value
    value       := 'string' | number | true | false | null | time('RFC 3339')         without offset: UTC

Keywords are read in any case.  ``and or not in is null true false`` are reserved (as keys they need backticks); the
names of functions are names of fields wherever they are not called.
"""

from typing import NoReturn

from vecdb.core.errors import InvalidFilter
from vecdb.core.filters import check
from vecdb.core.filters.check import Budget
from vecdb.core.filters.times import parse_literal
from vecdb.core.filters.tokens import CONTEXTUAL, Token, tokenize
from vecdb.core.filters.tree import And, Everything, Exists, IsNull, Node, Not, Or, Time, Value
from vecdb.core.limits import MAX_FILTER_BYTES, MAX_IN_VALUES

_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_FLIPPED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_LITERALS: dict[str, Value] = {"true": True, "false": False, "null": None}
_AND, _OR, _NOT = ("and", "&&"), ("or", "||"), ("not", "!")


def parse(text: str, *, max_bytes: int = MAX_FILTER_BYTES) -> Node:
    """Return the tree of a filter expression, or raise :class:`InvalidFilter` with the position of the fault.

    ``max_bytes``: refuse longer text (in UTF-8); stored filters, already checked once, may be given more.
    """
    if not isinstance(text, str):
        raise InvalidFilter(f"an expression must be a str, not {type(text).__name__}", got=type(text).__name__,
                            limit="str")
    if len(text) > max_bytes or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise InvalidFilter(f"an expression of {len(text)} characters is longer than {max_bytes} bytes; "
                            f"the mapping form and F take 'in' lists of up to {MAX_IN_VALUES} values",
                            position=max_bytes, got=len(text), limit=max_bytes)
    return _Parser(tokenize(text)).whole()


class _Parser:
    """One pass over the tokens; ``nesting`` counts open parentheses and negations, which bounds the recursion."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.place = 0
        self.nesting = 0
        self.budget = Budget()

    # -- tokens

    def peek(self, ahead: int = 0) -> Token:
        return self.tokens[min(self.place + ahead, len(self.tokens) - 1)]

    def take(self) -> Token:
        token = self.peek()
        self.place += 1
        return token

    def at(self, *values: str, ahead: int = 0) -> bool:
        token = self.peek(ahead)
        return token.kind in ("op", "word") and token.value in values

    def accept(self, *values: str) -> bool:
        found = self.at(*values)
        if found:
            self.place += 1
        return found

    def expect(self, value: str, why: str) -> None:
        if not self.accept(value):
            self.fail(f"expected {value!r} {why}")

    def fail(self, message: str, token: Token | None = None) -> NoReturn:
        token = token or self.peek()
        found = token.text if token.kind == "end" else repr(token.text[:40])
        raise InvalidFilter(f"{message}, found {found}", position=token.at, got=token.text[:40])

    # -- logic

    def whole(self) -> Node:
        if self.peek().kind == "end":
            raise InvalidFilter("an empty expression; leave the filter out, or write true, to match every record",
                                position=0, got="", limit="an expression")
        node = self.any_of()
        if self.peek().kind != "end":
            self.fail("expected 'and', 'or' or the end")
        check.check_depth(node)
        return node

    def any_of(self) -> Node:
        parts = [self.all_of()]
        while self.accept(*_OR):
            parts.append(self.all_of())
        return check.join(Or, parts)

    def all_of(self) -> Node:
        parts = [self.negated()]
        while self.accept(*_AND):
            parts.append(self.negated())
        return check.join(And, parts)

    def negated(self) -> Node:
        outside = self.nesting
        negations = 0
        while self.at(*_NOT):
            self.nest(self.take())
            negations += 1
        node = self.primary()
        for _ in range(negations):
            node = Not(node)
        self.nesting = outside
        return node

    def nest(self, token: Token) -> None:
        self.nesting += 1
        self.budget.depth(self.nesting, token.at)

    def primary(self) -> Node:
        if self.at("("):
            self.nest(self.take())
            node = self.any_of()
            self.expect(")", "to close the parenthesis")
            self.nesting -= 1
            return node
        self.budget.leaf(self.peek().at)
        return self.condition()

    # -- conditions

    def condition(self) -> Node:
        token = self.peek()
        if token.kind == "word":
            called = self.at("(", ahead=1)
            if token.value == "exists" and (called or self.peek(1).kind == "path" or self.at(*CONTEXTUAL, ahead=1)):
                self.take()
                return self.existence()
            if called and token.value in CONTEXTUAL and token.value != "time":
                return self.function()
        operand = self.operand()
        if isinstance(operand, _Path):
            special = self.of_path(operand.path)
            if special is not None:
                return special
        elif self.at("in") or (self.at("not") and self.at("in", ahead=1)):
            return self.value_in_path(operand)
        elif isinstance(operand, bool) and not self.at(*_COMPARISONS):
            return Everything() if operand else check.NOTHING
        return self.comparisons(operand, token)

    def existence(self) -> Node:
        if self.accept("("):
            path = self.path("exists needs a path")
            self.expect(")", "after the path of exists")
            return Exists(path)
        return Exists(self.path("exists needs a path"))

    def of_path(self, path: str) -> Node | None:
        """Return the condition that goes on after a path with a word, or None if a comparison follows."""
        negative = self.at("not") and self.at("in", "exists", "contains", "startswith", ahead=1)
        if negative:
            self.take()
        node: Node | None = None
        at = self.peek(1).at
        if self.accept("in"):
            node = check.is_in(path, self.values(), at)
        elif self.accept("exists"):
            node = Exists(path)
        elif self.accept("contains"):
            node = check.contains(path, self.string("contains"), at)
        elif self.accept("startswith"):
            node = check.prefix(path, self.string("startswith"), at)
        elif self.accept("is"):
            negative = self.accept("not")
            if not self.accept("null"):
                self.fail("expected null after 'is' (compare other values with ==)")
            node = IsNull(path)
        return Not(node) if node is not None and negative else node

    def comparisons(self, left: "_Operand", start: Token) -> Node:
        parts: list[Node] = []
        while self.at(*_COMPARISONS):
            if parts:
                self.budget.leaf(self.peek().at)
            op, at = self.take().value, self.peek().at
            right = self.operand()
            if isinstance(left, _Path) == isinstance(right, _Path):
                what = "two paths; a string stands in quotes" if isinstance(left, _Path) else "two values"
                raise InvalidFilter(f"a comparison needs a path and a value, not {what}", position=at,
                                    got=self.tokens[self.place - 1].text[:40], limit="path op value")
            if isinstance(left, _Path):
                parts.append(check.compare(left.path, op, _value(right), at))
            elif isinstance(right, _Path):
                parts.append(check.compare(right.path, _FLIPPED[op], left, start.at))
            left = right
        if not parts:
            if isinstance(left, _Path):
                if self.peek().text in ("-", "+") or self.peek().kind in ("number", "string", "path"):
                    self.fail(f"expected a comparison after the path {left.path!r}")
                self.fail(f"the path {left.path!r} alone is no condition: compare it, or write exists {left.path}; "
                          "expected a comparison")
            self.fail("a value alone is no condition; expected a comparison")
        return check.join(And, parts)

    def value_in_path(self, value: Value) -> Node:
        negative = self.accept("not")
        self.take()
        if self.at("[", "("):
            self.fail("a list is searched for a path's value: path in [values]; expected a path")
        node = check.compare(self.path("'in' needs a path"), "==", value)
        return Not(node) if negative else node

    def values(self) -> list[Value]:
        close = {"[": "]", "(": ")"}.get(str(self.peek().value) if self.peek().kind == "op" else "")
        if close is None:
            self.fail("'in' needs a list: expected '['")
        self.take()
        values: list[Value] = []
        while not self.accept(str(close)):
            if values:
                self.expect(",", f"or {close!r} after a value of the list")
                if self.accept(str(close)):
                    break
            if len(values) >= MAX_IN_VALUES:
                raise InvalidFilter(f"an 'in' list of more than {MAX_IN_VALUES} values", position=self.peek().at,
                                    got=f"> {MAX_IN_VALUES}", limit=MAX_IN_VALUES)
            values.append(self.value("a list holds values"))
        return values

    # -- functions and operands

    def function(self) -> Node:
        token = self.take()
        name = str(token.value)
        self.take()
        path = self.path(f"{name} needs a path first")
        self.expect(",", f"after the path of {name}")
        if name in ("prefix", "startswith", "contains"):
            at = self.peek().at
            text = self.string(name)
            node = check.contains(path, text, at) if name == "contains" else check.prefix(path, text, at)
        else:
            shape = {"geo_radius": ("lat", "lon", "metres"), "geo_box": ("south", "west", "north", "east")}[name]
            a, b, c, *d = [self.number(name, part, place) for place, part in enumerate(shape)]
            node = check.geo_box(path, a, b, c, d[0], token.at) if d else check.geo_radius(path, a, b, c, token.at)
        self.expect(")", f"to close {name}")
        return node

    def number(self, name: str, part: str, place: int) -> float:
        if place:
            self.expect(",", f"before {part} of {name}")
        token = self.peek()
        if token.kind != "number":
            self.fail(f"{name} needs a number for {part}")
        return self.take().value  # type: ignore[no-any-return]

    def string(self, name: str) -> str:
        if self.peek().kind != "string":
            self.fail(f"{name} needs a string in quotes")
        return str(self.take().value)

    def path(self, why: str) -> str:
        token = self.peek()
        if token.kind == "path":
            return str(self.take().value)
        if token.kind == "word" and token.value in CONTEXTUAL:
            return self.take().text
        if token.kind == "word":
            self.fail(f"{why} ({token.text!r} is reserved: quote it in backticks)")
        return self.fail(why)

    def value(self, why: str) -> Value:
        operand = self.operand()
        if isinstance(operand, _Path):
            self.fail(f"{why}; a string stands in quotes", self.tokens[self.place - 1])
        return _value(operand)

    def operand(self) -> "_Operand":
        token = self.peek()
        if token.kind in ("string", "number"):
            return self.take().value  # type: ignore[no-any-return]
        if token.kind == "word" and token.value in _LITERALS:
            return _LITERALS[self.take().value]
        if token.kind == "word" and token.value == "time" and self.at("(", ahead=1):
            return self.instant()
        if token.kind == "path" or (token.kind == "word" and token.value in CONTEXTUAL):
            return _Path(self.path("expected a path"))
        return self.fail("expected a path or a value")

    def instant(self) -> Time:
        self.place += 2
        token = self.peek()
        unix_ns = parse_literal(self.string("time"))
        if unix_ns is None:
            raise InvalidFilter(f"{token.text[:48]} is no RFC 3339 time, as 2024-01-31T12:00:00Z is (without offset: "
                                "UTC)", position=token.at, got=token.text[:48], limit="RFC 3339")
        self.expect(")", "to close time")
        return Time(unix_ns)


class _Path:
    """A path where a value might stand."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path


_Operand = _Path | Value


def _value(operand: _Operand) -> Value:
    assert not isinstance(operand, _Path)
    return operand


