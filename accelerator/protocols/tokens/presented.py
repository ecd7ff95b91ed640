"""The viewer's credential as a request carries it: parameters of the query, fields, cookies. Found, never judged.

ext/authorise.pyx reads the same places of the same bytes, for the digest under which a yes is remembered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accelerator.protocols.fields import Fields, get_all
from accelerator.protocols.tokens.verdict import CREDENTIAL_BYTES_MAX, Reason, Refused

_SCHEMES = (b"bearer ", b"cat ")


@dataclass(frozen=True, slots=True)
class Places:
    """Where policy says that the credential is. Field names are in lower case."""

    parameters: tuple[bytes, ...] = ()
    headers: tuple[bytes, ...] = ()
    cookies: tuple[bytes, ...] = ()


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of an origin-form target."""
    path, _, query = target.partition(b"?")
    return path, query


def without_parameters(query: bytes, names: Sequence[bytes]) -> bytes:
    """The query less these parameters; nothing is decoded or reordered."""
    return b"&".join(part for part in query.split(b"&") if part.partition(b"=")[0] not in names) if query else b""


def parameters(query: bytes, names: Sequence[bytes], *, is_raw: bool = False) -> dict[bytes, bytes]:
    """The values of those of `names` that are there, percent-encoding undone (but `is_raw`); one twice is Refused:
    who reads the first and who reads the last would judge different credentials."""
    found: dict[bytes, bytes] = {}
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name not in names:
            continue
        if name in found:
            raise Refused(Reason.SEVERAL)
        found[name] = _bounded(value) if is_raw else unquote(_bounded(value))
    return found


def cookies(fields: Fields, names: Sequence[bytes]) -> dict[bytes, bytes]:
    """The values of those cookies (RFC 6265 section 4.2.1) that are there; one twice is Refused."""
    found: dict[bytes, bytes] = {}
    for line in get_all(fields, b"cookie"):
        for pair in line.split(b";"):
            name, equals, value = pair.strip(b" \t").partition(b"=")
            if not equals or name not in names:
                continue
            if name in found:
                raise Refused(Reason.SEVERAL)
            found[name] = _bounded(value)
    return found


def one_token(target: bytes, fields: Fields, places: Places, *, is_raw: bool = False) -> bytes:
    """The one token of schemes that have one: from a parameter, a field (after `Bearer` or `CAT`) or a cookie. Two that
    differ are Refused, and so is none."""
    _, query = split_target(target)
    in_query = parameters(query, places.parameters, is_raw=is_raw)
    found = [*in_query.values(), *cookies(fields, places.cookies).values()]
    for name in places.headers:
        lines = get_all(fields, name)
        if len(lines) > 1:
            raise Refused(Reason.SEVERAL)
        for line in lines:
            scheme = next((each for each in _SCHEMES if line.lower().startswith(each)), b"")
            found.append(_bounded(line[len(scheme) :].strip(b" ")))
    if not found:
        raise Refused(Reason.MISSING)
    if len(set(found)) > 1:
        raise Refused(Reason.SEVERAL)
    return found[0]


def required(values: Mapping[bytes, bytes], name: bytes) -> bytes:
    """A value that has to be there, else Refused."""
    value = values.get(name)
    if not value:
        raise Refused(Reason.MISSING)
    return value


def unquote(text: bytes) -> bytes:
    """Percent-encoding undone once; a `%` that encodes nothing is Refused. A plus stays one."""
    first, *rest = text.split(b"%")
    parts = [first]
    for part in rest:
        try:
            parts.append(bytes([int(part[:2], 16)]) if part[:2].isalnum() and len(part) > 1 else _refuse())
        except ValueError:
            raise Refused(Reason.MALFORMED) from None
        parts.append(part[2:])
    return b"".join(parts)


def _refuse() -> bytes:
    raise Refused(Reason.MALFORMED)


def _bounded(value: bytes) -> bytes:
    if len(value) > CREDENTIAL_BYTES_MAX:
        raise Refused(Reason.TOO_LONG)
    return value
