"""Cache-Control, CDN-Cache-Control and Pragma as directives (RFC 9111 section 5.2, RFC 9213). It decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from accelerator.protocols.fields import Fields, get_all, has, is_token, parse_digits, split_list
from accelerator.protocols.origin_rules import OriginRules
from accelerator.protocols.structured_fields import ItemType, parse_dictionary

# RFC 9111 section 1.2.2: what is larger counts as 2**31 (or the largest number kept), never as something past.
DELTA_SECONDS_MAX = 2**31

_MALFORMED = b"\x00"  # no argument can hold NUL: the head parser refuses it


class Directives(Mapping[bytes, bytes | None]):
    """Directives by lower-case name; the value is the first occurrence's argument, unquoted, or None.

    A member that is not well formed still counts as present, because what forbids must be heard; as an argument it is
    worth nothing: seconds() takes it for 0, and allows() does not hear it.
    """

    def __init__(self, arguments: Mapping[bytes, bytes | None]) -> None:
        self._arguments = dict(arguments)

    def __getitem__(self, name: bytes) -> bytes | None:
        return self._arguments[name]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._arguments)

    def __len__(self) -> int:
        return len(self._arguments)

    def seconds(self, name: bytes) -> int | None:
        """The delta-seconds of a directive; None: absent. Invalid counts as 0, so as stale (RFC 9111 section 4.2.1)."""
        if name not in self._arguments:
            return None
        return parse_digits(self._arguments[name] or b"", DELTA_SECONDS_MAX) or 0

    def allows(self, name: bytes) -> bool:
        """Whether a directive that permits something (public, must-understand) stands there without a slip."""
        return name in self._arguments and self._arguments[name] != _MALFORMED

    def without(self, *names: bytes) -> Directives:
        """A copy that lacks these."""
        return Directives({name: argument for name, argument in self._arguments.items() if name not in names})


def parse(values: Iterable[bytes]) -> Directives:
    """Directives of Cache-Control lines: names in any case, arguments as token or string (RFC 9111 section 5.2)."""
    arguments: dict[bytes, bytes | None] = {}
    for value in values:
        for member in split_list(value):
            name, equals, argument = member.partition(b"=")
            slip = not is_token(name)
            key = name.strip(b" \t").lower()
            if key in arguments:  # RFC 9111 section 4.2.1: the first occurrence is used
                continue
            if slip:
                arguments[key] = _MALFORMED
            elif not equals:
                arguments[key] = None
            else:
                arguments[key] = _unquote(argument)
    return Directives(arguments)


def parse_targeted(values: Iterable[bytes]) -> Directives | None:
    """Directives of a targeted field; None: absent, empty or invalid, so ignored (RFC 9213 section 2.2).

    A value of a type that its directive cannot have is not consumed (section 2.1); that a directive forbids is heard
    with any value but `?0`.
    """
    members = parse_dictionary(b", ".join(values))
    if not members:
        return None
    arguments: dict[bytes, bytes | None] = {}
    for name, (item_type, text) in members.items():
        if name in _WITH_SECONDS:
            if item_type is ItemType.INTEGER and not text.startswith(b"-"):
                arguments[name] = text
        elif item_type is not ItemType.BOOLEAN:
            arguments[name] = text
        elif text == b"1":
            arguments[name] = None
    return Directives(arguments)


_WITH_SECONDS = frozenset({b"max-age", b"s-maxage", b"stale-while-revalidate", b"stale-if-error"})


def response_directives(fields: Fields) -> tuple[Directives, bool]:
    """A response's directives as they concern us, and whether Expires counts too.

    A valid CDN-Cache-Control replaces Cache-Control and Expires (RFC 9213 sections 2.2 and 3.1).
    """
    targeted = parse_targeted(get_all(fields, b"cdn-cache-control"))
    if targeted is not None:
        return targeted, False
    return parse(get_all(fields, b"cache-control")), True


@dataclass(frozen=True)
class RequestDirectives:
    """What a viewer asks of caches (RFC 9111 section 5.2.1); None: not said."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_s: int | None = None
    min_fresh_s: int | None = None
    max_stale_s: int | None = None

    def accepts(self, *, age_s: float, lifetime_s: float) -> bool:
        """Whether a stored response of this age may answer without validation."""
        if self.no_cache or (self.max_age_s is not None and age_s > self.max_age_s):
            return False
        return self.min_fresh_s is None or lifetime_s - age_s >= self.min_fresh_s

    def accepts_stale(self, staleness_s: float) -> bool:
        """Whether one that has been stale for so long may answer (RFC 9111 section 5.2.1.2), where the origin doesn't
        forbid it."""
        return self.max_stale_s is not None and staleness_s <= self.max_stale_s


def request_directives(fields: Fields, rules: OriginRules) -> RequestDirectives:
    """A viewer's directives where its origin's profile honours them.

    They are advisory (RFC 9111 section 5.2.1). Profile media ignores them all: players and reload keys send
    `no-cache`, and 6,000 of these are a reload storm at the origin.
    """
    if rules.profile == "media":
        return RequestDirectives()
    if not has(fields, b"cache-control"):
        # RFC 9111 section 5.4: Pragma counts only in the absence of Cache-Control.
        pragma = parse(get_all(fields, b"pragma"))
        return RequestDirectives(no_cache=b"no-cache" in pragma)
    directives = parse(get_all(fields, b"cache-control"))
    is_bare = b"max-stale" in directives and directives[b"max-stale"] is None  # RFC 9111 section 5.2.1.2: of any age
    return RequestDirectives(
        no_cache=b"no-cache" in directives,
        no_store=b"no-store" in directives,
        only_if_cached=b"only-if-cached" in directives,
        max_age_s=directives.seconds(b"max-age"),
        min_fresh_s=directives.seconds(b"min-fresh"),
        max_stale_s=DELTA_SECONDS_MAX if is_bare else directives.seconds(b"max-stale"),
    )


def _unquote(argument: bytes) -> bytes:
    if len(argument) >= 2 and argument.startswith(b'"') and argument.endswith(b'"'):
        inner = argument[1:-1]
        if b"\\" not in inner:
            return inner if b'"' not in inner else _MALFORMED
        return _MALFORMED if inner.endswith(b"\\") else inner.replace(b"\\", b"")
    return argument if is_token(argument) else _MALFORMED
