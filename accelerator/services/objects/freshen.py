"""What the head of a HEAD's answer, or of a part, says of a stored GET (RFC 9111 sections 3.4 and 4.3.5). Decides
nothing on the answer itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerator.protocols import live
from accelerator.protocols.cache_validate import Validated, decide_304
from accelerator.protocols.fields import Field, Fields, get_first, has
from accelerator.protocols.representation import selected_etag
from accelerator.services.objects.heads import compose, split_lines, with_exposed
from accelerator.services.objects.sharing import lies_in_request

if TYPE_CHECKING:
    from accelerator.dataplane import StoredObject
    from accelerator.protocols.origin_rules import OriginRules

_ABOUT_ONE_VIEWER = (b"authorization", b"cookie")
_PLAYLISTS = frozenset(list(live.Kind).index(kind) for kind in live.PLAYLISTS)


def freshen_by_head(
    stored: StoredObject,
    request_fields: Fields,
    response_fields: Fields,
    path: bytes,
    rules: OriginRules,
    *,
    request_wall_s: float,
    response_wall_s: float,
    request_ns: int,
    response_ns: int,
) -> None:
    """Updates a stored 200 by a HEAD's 200 of the same representation, or invalidates it where that is another one.

    Not by an answer to credentials, which may be one viewer's own.
    """
    if stored.is_failed or stored.status != 200 or any(has(request_fields, name) for name in _ABOUT_ONE_VIEWER):
        return
    known = split_lines(stored.lines())
    if not _is_same(stored, known, response_fields):
        stored.detach()
        return
    fresh: list[Field] = list(response_fields)
    validated = decide_304(
        request_fields, path, rules, stored.status, known, fresh,
        request_wall_s=request_wall_s, response_wall_s=response_wall_s,
    )  # fmt: skip
    if not validated.verdict.store:
        return
    _take_head(stored, validated, response_fields, request_ns, response_ns)


def freshen_by_part(
    stored: StoredObject,
    request_fields: Fields,
    response_fields: Fields,
    rules: OriginRules,
    *,
    request_wall_s: float,
    response_wall_s: float,
    request_ns: int,
    response_ns: int,
) -> bool:
    """Updates a stored 200 by the head of a part that is combined with it: MUST, by RFC 9111 section 3.4.

    False: its origin says now that it may not be kept. What forbids to share only this viewer's answer changes nothing:
    the bytes are those of a representation that others were allowed to have.
    """
    key = stored.key
    if key is None or stored.is_failed or stored.kind in _PLAYLISTS:  # a playlist's lifetime is in its body
        return True
    validated = decide_304(
        request_fields, key, rules, stored.status, split_lines(stored.lines()), response_fields,
        request_wall_s=request_wall_s, response_wall_s=response_wall_s,
    )  # fmt: skip
    if lies_in_request(validated.verdict):
        return True
    if not validated.verdict.store:
        return False
    _take_head(stored, validated, response_fields, request_ns, response_ns)
    return True


def _take_head(
    stored: StoredObject, validated: Validated, response_fields: Fields, request_ns: int, response_ns: int
) -> None:
    head = compose(
        stored.status, with_exposed(validated.fields), validated.verdict,
        request_ns=request_ns, response_ns=response_ns, has_age=has(response_fields, b"age"),
    )  # fmt: skip
    if not stored.set_head(*head.arguments()):
        stored.detach()


def _is_same(stored: StoredObject, known: Fields, fresh: Fields) -> bool:
    """Whether validators and Content-Length, where the HEAD has them, are those of what is stored."""
    if has(fresh, b"etag") and selected_etag(fresh) != selected_etag(known):
        return False
    modified = get_first(fresh, b"last-modified")
    if modified is not None and modified != get_first(known, b"last-modified"):
        return False
    length = get_first(fresh, b"content-length")
    return length is None or stored.total_length < 0 or length == b"%d" % stored.total_length
