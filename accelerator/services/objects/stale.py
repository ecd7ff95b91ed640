"""Whether a stored response may answer although it is stale and its origin failed (RFC 9111 section 4.2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from accelerator import clock
from accelerator.dataplane import SLICE_BYTES
from accelerator.protocols import live
from accelerator.protocols.cache_decide import Verdict, decide, with_manifest
from accelerator.protocols.cache_validate import may_serve_stale
from accelerator.services.objects.heads import NS, split_lines

if TYPE_CHECKING:
    from accelerator.dataplane import StoredObject
    from accelerator.protocols.byte_ranges import ByteRange
    from accelerator.protocols.origin_rules import OriginRules

Failure = Literal["disconnected", "5xx"]


def kept_verdict(stored: StoredObject, path: bytes, rules: OriginRules) -> Verdict | None:
    """The verdict on what is stored, as of now; None where it was listed only for those who waited for it."""
    now_s = clock.wall_s()
    fields = split_lines(stored.lines())
    verdict = decide([], b"GET", path, rules, stored.status, fields, request_wall_s=now_s, response_wall_s=now_s)
    if not verdict.store:
        return None
    if verdict.kind in live.PLAYLISTS:
        verdict = with_manifest(verdict, live.read_manifest(stored.body(live.MANIFEST_SIZE_MAX + 1)), rules)
    return verdict


def is_known(stored: StoredObject, rules: OriginRules, now_ns: int) -> bool:
    """Whether it was checked with its origin so lately that it may be used without (max_offline): the workers' rule."""
    return not rules.max_offline_s or now_ns - stored.validated_ns <= rules.max_offline_s * NS


def permits_stale(
    stored: StoredObject, verdict: Verdict, failure: Failure, asked: ByteRange | None, rules: OriginRules
) -> bool:
    """`asked`: the viewer's range. With the origin gone nothing can be added to a body that isn't whole."""
    if not is_known(stored, rules, clock.monotonic_ns()):
        return False
    if stored.is_failed or not (stored.is_whole or _has_bytes(stored, asked)):
        return False
    fresh_until_ns = max(stored.fresh_until_ns, stored.born_ns)
    staleness_s = max(0, clock.monotonic_ns() - fresh_until_ns) / NS
    return may_serve_stale(verdict, staleness_s=staleness_s, failure=failure)


def _has_bytes(stored: StoredObject, asked: ByteRange | None) -> bool:
    if asked is None or asked[0] < 0:
        return False
    first = asked[0]
    last = stored.total_length - 1 if asked[1] is None else min(asked[1], stored.total_length - 1)
    while first <= last:
        n = stored.has_bytes(first)
        if n == 0:
            return False
        first += min(n, SLICE_BYTES)
    return True
