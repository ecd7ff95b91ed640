"""Who but the leader may get an answer that isn't stored, and what it says of what is stored. Lifetimes: protocols/."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerator.protocols.cache_decide import Reason, Verdict, may_answer_waiting
from accelerator.protocols.fields import has

if TYPE_CHECKING:
    from accelerator.io.response import Response
    from accelerator.protocols.fields import Fields
    from accelerator.protocols.origin_rules import OriginRules

# What the others do when an answer is the leader's alone (Exchange.leader).
OTHERS_ALONE = 0
OTHERS_AGAIN = 1
_LIES_IN_REQUEST = frozenset({Reason.AUTHORIZATION, Reason.REQUEST_NO_STORE, Reason.METHOD, Reason.VARY_HIDDEN})
# Nothing is shared that varies by more than this: an error is, whatever page asks, unless it is coded.
_HARMLESS_VARY = frozenset({b"origin", b"accept-encoding"})


def lies_in_request(verdict: Verdict) -> bool:
    """Whether it was the leader's request that forbade to share: the others may share among themselves."""
    return verdict.reason in _LIES_IN_REQUEST


def shares_error(response: Response, verdict: Verdict, request_fields: Fields, rules: OriginRules) -> bool:
    """Whether an error answers all who wait (DESIGN.md section 5)."""
    if response.status < 400 or not _HARMLESS_VARY.issuperset(verdict.vary):
        return False
    if b"accept-encoding" in verdict.vary and has(response.fields, b"content-encoding"):
        return False
    return may_answer_waiting(verdict, request_fields, rules)


def answers_waiting(status: int, verdict: Verdict) -> bool:
    """Whether a response that nobody may reuse later answers who asked before it was fetched (RFC 9111 section 4).

    Listed without lifetime it does just that: a `no-cache` playlist without validator costs one request at a time.
    """
    return status in (200, 203) and verdict.share_waiting


def ends_stored(status: int, verdict: Verdict) -> bool:
    """Whether an answer to a validation that isn't stored says that what is stored is no more."""
    if lies_in_request(verdict) or verdict.reason is Reason.PROVOKED:
        return False
    return status < 400 or status in (404, 410)
