"""Validation and stale answers (RFC 9111 sections 3.2, 4.2.4, 4.3.3, 4.3.4). Storing: cache_decide.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from accelerator.protocols.cache_decide import Verdict, decide
from accelerator.protocols.dates import format_http_date, parse_http_date
from accelerator.protocols.fields import Field, Fields, get_all, get_first, has, without_hop_by_hop
from accelerator.protocols.origin_rules import OriginRules
from accelerator.protocols.representation import entity_tag

# RFC 9111 section 3.2: Content-Length is never updated, and a cache that works on bodies may keep what describes them:
# ours read kind and coding when it stored this one. Set-Cookie never enters a shared object, Age is the edge's.
_NOT_UPDATED = frozenset(
    {b"content-length", b"content-encoding", b"content-type", b"content-range", b"set-cookie", b"set-cookie2", b"age"}
)


@dataclass(frozen=True)
class Validated:
    """A stored response after a 304: its new head, and the verdict on it. A cookie of the 304 goes to nobody: the head
    that answers is the stored one, and others get it too."""

    fields: list[Field]
    verdict: Verdict


def matches_304(stored_etag: bytes | None, stored_last_modified: bytes | None, fields_304: Fields) -> bool:
    """Whether a 304 is about our stored response (RFC 9111 section 4.3.4). If not: fetch again, without conditions.

    One without validators is taken as ours: we asked about one representation, it cannot mean another. So is the strong
    form of a stored weak tag, because nginx sends that for what it compresses; merge_304 keeps the tag weak.
    """
    fresh_etag = get_first(fields_304, b"etag")
    if fresh_etag is not None:
        if stored_etag is None or entity_tag(fresh_etag) is None:
            return False
        return fresh_etag.removeprefix(b"W/") == stored_etag.removeprefix(b"W/")
    fresh_date = get_first(fields_304, b"last-modified")
    if fresh_date is None or stored_last_modified is None:
        return fresh_date is None or stored_etag is not None
    fresh_s = parse_http_date(fresh_date)
    return fresh_s is not None and fresh_s == parse_http_date(stored_last_modified)


def merge_304(stored: Fields, fresh: Fields, *, response_wall_s: float) -> list[Field]:
    """The stored head, updated: each field of the 304 replaces all stored lines of its name (RFC 9111 section 3.2)."""
    not_updated = _NOT_UPDATED
    if (get_first(stored, b"etag") or b"").startswith(b"W/"):
        # A stored body that the origin would not vouch for byte by byte does not become strong by a 304.
        not_updated = not_updated | {b"etag"}
    updates = [field for field in without_hop_by_hop(fresh) if field[0].lower() not in not_updated]
    if not has(updates, b"date"):  # RFC 9110 section 6.6.1
        updates.append((b"Date", format_http_date(response_wall_s)))
    names = {name.lower() for name, _ in updates}
    return [field for field in stored if field[0].lower() not in names] + updates


def decide_304(
    request_fields: Fields,
    path: bytes,
    rules: OriginRules,
    stored_status: int,
    stored: Fields,
    fresh: Fields,
    *,
    request_wall_s: float,
    response_wall_s: float,
) -> Validated:
    """Fields and verdict after a 304 that matches_304. The 304's own lifetime and Age count from here on.

    Where the verdict no longer says `store` (the 304 brought `private`, say), the object answers its leader once more,
    and goes. The verdict on a playlist needs cache_decide.with_manifest again.
    """
    merged = merge_304(stored, fresh, response_wall_s=response_wall_s)
    ages = [(b"Age", value) for value in get_all(fresh, b"age")]
    verdict = decide(
        request_fields,
        b"GET",
        path,
        rules,
        stored_status,
        [*merged, *ages],
        request_wall_s=request_wall_s,
        response_wall_s=response_wall_s,
    )
    return Validated(merged, verdict)


def may_serve_stale(
    verdict: Verdict, *, staleness_s: float, failure: Literal["revalidating", "disconnected", "5xx"]
) -> bool:
    """Whether a stored response may be served `staleness_s` after its lifetime ended (RFC 9111 section 4.2.4).

    `revalidating`: nothing failed, a validation is under way. `disconnected`: no answer from the origin. `5xx`: it
    answered 500, 502, 503 or 504. Where this says no, the viewer gets 504 if the origin was not reached, else its
    answer.
    """
    # First what forbids: no permission gets past these, policy's neither.
    if verdict.forbids_stale or verdict.must_validate:  # RFC 9111 sections 5.2.2.2, 5.2.2.4, 5.2.2.8, 5.2.2.10
        return False
    if staleness_s > verdict.stale_limit_s:  # a live playlist: one target duration (DESIGN.md section 5)
        return False
    # Then what permits.
    if failure == "revalidating":  # RFC 5861 section 3
        return staleness_s <= verdict.stale_while_revalidate_s
    # RFC 5861 section 4: an error is whatever would make a gateway answer 500, 502, 503 or 504
    if staleness_s <= verdict.stale_if_error_s:
        return True
    return failure == "disconnected" and staleness_s <= verdict.stale_disconnected_s
