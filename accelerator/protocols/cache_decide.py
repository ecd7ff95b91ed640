"""Decides of a response, once its head is known: stored or not, for whom, how long (RFC 9111 section 3). Pure.

What forbids is evaluated before what permits. Validation and stale answers are decided in cache_validate.py, what goes
to the origin in upstream_fields.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from accelerator.protocols import live
from accelerator.protocols.cache_control import DELTA_SECONDS_MAX, Directives, request_directives, response_directives
from accelerator.protocols.dates import parse_http_date
from accelerator.protocols.fields import Fields, get_all, get_first, get_list, has, is_token, without_hop_by_hop
from accelerator.protocols.freshness import explicit_lifetime_s, initial_age_s
from accelerator.protocols.live import Kind, Manifest
from accelerator.protocols.origin_rules import OriginRules as OriginRules
from accelerator.protocols.representation import ContentRange as ContentRange
from accelerator.protocols.representation import partial_range, selected_etag
from accelerator.protocols.representation import stored_fields as stored_fields
from accelerator.protocols.upstream_fields import travels

# How long a key is remembered as not shareable, so that nobody queues behind a private response (DESIGN.md section 5).
NOT_SHAREABLE_S: Final = 10.0
# "No limit" of a stale window, as a number that the data plane can compare.
UNLIMITED_S: Final = float(DELTA_SECONDS_MAX)

# Statuses that a request can provoke by its own oddness, so that storing one denies the resource to all others
# (reliability.md section 4, CPDoS: 400, 405, 413, 414, 431, 501), and those that answer this request's conditions,
# range, expectation, negotiation or pace.
PROVOKED_STATUSES: Final = frozenset({400, 405, 406, 408, 411, 412, 413, 414, 415, 416, 417, 421, 426, 428, 431, 501})
# Nobody's limit of a head is smaller; servers have 4 KiB (some 8 or 16) for it, and answer 400, 413 or 431 beyond.
PLAIN_BYTES_MAX: Final = 2048
_PRINTABLE = re.compile(rb"[\x20-\x7e]*")
REDIRECTS: Final = frozenset({300, 301, 302, 303, 307, 308})
NOT_FOUND: Final = frozenset({404, 410})
_SUCCESSES = frozenset({200, 203, 204, 206})
# Statuses whose rules for caching we implement (must-understand, RFC 9111 section 5.2.2.3)
_UNDERSTOOD = _SUCCESSES | REDIRECTS | NOT_FOUND
# Of the statuses that may be stored without explicit lifetime (RFC 9110 section 15.1), those worth validating each time
_STORED_TO_VALIDATE = frozenset({200, 203})


class Reason(StrEnum):
    """Why a verdict is as it is: the first rule that settled it. Stable tokens, shown in statistics."""

    EXPLICIT = "explicit"  # stored, for the lifetime that the origin gave
    DEFAULT = "default"  # stored, for the lifetime of its kind (live.py)
    VALIDATE = "validate"  # must be validated at each use; stored if that is of any use
    PARTIAL = "partial"  # 206: its slices may be kept and combined
    PARTIAL_WEAK = "partial-weak"  # 206 without a strong ETag, or of unknown length or place
    METHOD = "method"
    STATUS = "status"
    PROVOKED = "provoked-error"
    SERVER_ERROR = "server-error"
    REQUEST_NO_STORE = "request-no-store"
    NO_STORE = "no-store"
    PRIVATE = "private"
    SET_COOKIE = "set-cookie"
    AUTHORIZATION = "authorization"
    MUST_UNDERSTAND = "must-understand"
    VARY_STAR = "vary-star"
    VARY_HIDDEN = "vary-hidden"  # Connection took away a field that selects the variant
    TIMING = "timing"
    EVENT_STREAM = "event-stream"
    NO_LIFETIME = "no-lifetime"


# Refusals that lie in the resource. All others lie in one request: remembering those would let a stranger switch
# collapsing off for everyone by asking oddly every ten seconds.
_LIES_IN_RESOURCE = frozenset(
    {
        Reason.SET_COOKIE,
        Reason.PRIVATE,
        Reason.NO_STORE,
        Reason.VARY_STAR,
        Reason.TIMING,
        Reason.EVENT_STREAM,
    }
)


@dataclass(frozen=True)
class Verdict:
    """What may be done with a response. Times are in seconds.

    store: the whole body may be kept under the key, for others.
    shareable: other viewers may be answered with it, within its freshness; of a 206: its slices may be kept. True
        whenever `store` is.
    share_waiting: requests that waited for it may be answered with it, stored or not: ask may_answer_waiting.
    waiting_status: if not 0, the waiting requests that can't share get this status from us; a request of their own
        each is what an origin in trouble would not survive.
    not_shareable_for_s: how long requests for the key must not wait for each other; 0: not remembered.
    lifetime_s, initial_age_s: fresh while initial_age_s + time since the response < lifetime_s (RFC 9111 section 4.2).
        A default lifetime counts from the response, so response_delay_s is contained in it.
    must_validate: no-cache. forbids_stale: nobody may permit stale use (RFC 9111 section 4.2.4).
    stale_limit_s: beyond it nothing is served, whoever permits it. stale_disconnected_s: policy's own permission.
    vary: lower case, sorted, unique, and only of fields that reach the origin.
    """

    store: bool
    shareable: bool
    share_waiting: bool
    reason: Reason
    kind: Kind
    lifetime_s: float = 0.0
    initial_age_s: float = 0.0
    response_delay_s: float = 0.0
    has_explicit_lifetime: bool = False
    must_validate: bool = False
    forbids_stale: bool = False
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    stale_disconnected_s: float = 0.0
    stale_limit_s: float = UNLIMITED_S
    vary: tuple[bytes, ...] = ()
    etag: bytes | None = None
    etag_is_strong: bool = False
    last_modified_s: int | None = None
    partial: ContentRange | None = None
    waiting_status: int = 0
    not_shareable_for_s: float = 0.0


def has_validator(verdict: Verdict) -> bool:
    """Whether a conditional request can be made of it (RFC 9111 section 4.3.1)."""
    return verdict.etag is not None or verdict.last_modified_s is not None


def is_fresh_on_arrival(verdict: Verdict) -> bool:
    """Whether it may be reused without validation at all (RFC 9111 section 4.2)."""
    return not verdict.must_validate and verdict.lifetime_s > verdict.initial_age_s


def decide(
    request_fields: Fields,
    method: bytes,
    path: bytes,
    rules: OriginRules,
    status: int,
    response_fields: Fields,
    *,
    request_wall_s: float,
    response_wall_s: float,
    is_timing: bool = False,
) -> Verdict:
    """Verdict on a final response (not a 304: see cache_validate.decide_304), from its head alone.

    `request_fields` are the viewer's, `path` may carry the query. `is_timing`: the URL is one that an MPD names for
    UTCTiming. Raises OriginError("content-range") for a 206 whose Content-Range is missing, malformed, or at odds with
    its Content-Length.
    """
    is_media = rules.profile == "media"
    kind = Kind.OTHER
    if status in _SUCCESSES:
        kind = live.recognise(path, get_first(response_fields, b"content-type") or b"")
    credentials = _has_credentials(request_fields, rules)
    directives, expires_counts = response_directives(response_fields)
    if not credentials and _overrides_private(rules, kind, directives, response_fields):
        directives, expires_counts = _overridden(directives), False
    explicit_s = explicit_lifetime_s(directives, expires_counts, response_fields, response_wall_s)
    vary = _vary(status, response_fields, rules)
    etag = selected_etag(response_fields)
    last_modified = get_first(response_fields, b"last-modified")
    limit_s = live.stale_limit_s(kind) if is_media else None
    must_validate = b"no-cache" in directives  # RFC 9111 section 5.2.2.4; the qualified form counts as unqualified
    known = Verdict(
        store=False,
        shareable=False,
        share_waiting=False,
        reason=Reason.STATUS,
        kind=kind,
        initial_age_s=initial_age_s(response_fields, request_wall_s, response_wall_s),
        response_delay_s=max(0.0, response_wall_s - request_wall_s),
        has_explicit_lifetime=explicit_s is not None,
        must_validate=must_validate,
        # RFC 9111 section 4.2.4, with sections 5.2.2.2, 5.2.2.8 and 5.2.2.10
        forbids_stale=must_validate
        or any(name in directives for name in (b"must-revalidate", b"proxy-revalidate", b"s-maxage")),
        stale_while_revalidate_s=float(directives.seconds(b"stale-while-revalidate") or 0),
        stale_if_error_s=float(directives.seconds(b"stale-if-error") or 0),
        # RFC 9111 section 4.2.4 permits it when disconnected. Profile media plays on then, generic asks the response.
        stale_disconnected_s=UNLIMITED_S if is_media else 0.0,
        stale_limit_s=UNLIMITED_S if limit_s is None else limit_s,
        vary=vary or (),
        etag=etag,
        etag_is_strong=etag is not None and not etag.startswith(b"W/"),
        last_modified_s=None if last_modified is None else parse_http_date(last_modified, response_wall_s),
        partial=partial_range(response_fields) if status == 206 else None,
    )
    refusal = _refusal(request_fields, method, rules, status, response_fields, directives, vary, is_timing)
    if refusal is not None:
        is_remembered = refusal in _LIES_IN_RESOURCE and status < 400
        return replace(
            known,
            reason=refusal,
            waiting_status=_waiting_status(status, is_media),
            not_shareable_for_s=NOT_SHAREABLE_S if is_remembered else 0.0,
        )
    # Who sent credentials may have got an answer of his own; a lifetime, no-cache, or a directive of RFC 9111 section
    # 3.5 is the origin's word that it is for all.
    is_personal = credentials and explicit_s is None and not must_validate and not _is_for_authorized(directives)
    if status in PROVOKED_STATUSES and (is_media or explicit_s is None or not _is_plain(request_fields)):
        return replace(known, reason=Reason.PROVOKED)
    return _permission(known, status, explicit_s, rules, credentials, is_personal)


def _refusal(
    request_fields: Fields,
    method: bytes,
    rules: OriginRules,
    status: int,
    response_fields: Fields,
    directives: Directives,
    vary: tuple[bytes, ...] | None,
    is_timing: bool,
) -> Reason | None:
    """The first rule by which nobody but the one who asked may see this response."""
    if method != b"GET":  # RFC 9111 section 3: a method that we understand; a HEAD has no body to keep
        return Reason.METHOD
    if is_timing:  # its body is the time of day (DESIGN.md section 5)
        return Reason.TIMING
    content_type = get_first(response_fields, b"content-type") or b""
    if content_type.partition(b";")[0].strip(b" \t").lower() == b"text/event-stream":
        return Reason.EVENT_STREAM  # each listener's begins when he comes, and never ends
    if has(response_fields, b"set-cookie"):  # RFC 9111 section 7.3 leaves it to us: nobody gets another's session
        return Reason.SET_COOKIE
    if b"private" in directives:  # RFC 9111 section 5.2.2.7; the qualified form may be taken as unqualified
        return Reason.PRIVATE
    understands = directives.allows(b"must-understand")
    if understands and status not in _UNDERSTOOD:  # RFC 9111 section 5.2.2.3
        return Reason.MUST_UNDERSTAND
    if b"no-store" in directives and not understands:  # RFC 9111 section 5.2.2.5
        return Reason.NO_STORE
    if request_directives(request_fields, rules).no_store:  # RFC 9111 section 5.2.1.5
        return Reason.REQUEST_NO_STORE
    is_authorized = has(request_fields, b"authorization") and b"authorization" not in rules.credential_headers
    if is_authorized and not _is_for_authorized(directives):  # RFC 9111 section 3.5
        return Reason.AUTHORIZATION
    if vary is None:  # RFC 9111 section 4.1: a member `*` always fails to match
        return Reason.VARY_STAR
    if any(has(request_fields, name) and not has(without_hop_by_hop(request_fields), name) for name in vary):
        # The origin answered without the field; stored, that answer would go to all who send it. `Connection: Origin`
        # would keep every page of that origin from playing.
        return Reason.VARY_HIDDEN
    return None


def _permission(
    known: Verdict, status: int, explicit_s: float | None, rules: OriginRules, credentials: bool, is_personal: bool
) -> Verdict:
    """Verdict on a response that nothing forbids to share."""
    is_media = rules.profile == "media"
    if status in NOT_FOUND or status in REDIRECTS:
        return _negative(known, status, explicit_s, rules, credentials)
    if status not in _SUCCESSES:
        if explicit_s is not None and not is_media and status != 304:
            # RFC 9111 section 3: any final status with explicit freshness
            return _lasting(known, status, explicit_s, Reason.EXPLICIT, credentials, is_media)
        is_server_error = status >= 500
        return replace(
            known,
            reason=Reason.SERVER_ERROR if is_server_error else Reason.STATUS,
            share_waiting=is_server_error and not credentials,
            waiting_status=_waiting_status(status, is_media),
        )
    if is_personal:
        return replace(known, reason=Reason.NO_LIFETIME, not_shareable_for_s=NOT_SHAREABLE_S)
    lifetime_s, reason = explicit_s, Reason.EXPLICIT
    if lifetime_s is None:
        default_s = live.lifetime_s(known.kind) if is_media else 0.0
        lifetime_s, reason = (default_s + known.response_delay_s if default_s else 0.0), Reason.DEFAULT
    if status == 206:
        return _partial(replace(known, lifetime_s=lifetime_s), credentials)
    return _lasting(known, status, lifetime_s, reason, credentials, is_media)


def _negative(known: Verdict, status: int, explicit_s: float | None, rules: OriginRules, credentials: bool) -> Verdict:
    """404, 410 and redirects: for the origin's explicit lifetime, in profile media below policy's ceiling."""
    # An error is no video to play on with while the WAN is cut.
    known = replace(known, stale_disconnected_s=0.0)
    lifetime_s = min(explicit_s or 0.0, rules.not_found_ceiling_s if rules.profile == "media" else UNLIMITED_S)
    fresh = replace(known, lifetime_s=lifetime_s)
    if is_fresh_on_arrival(fresh):
        return replace(fresh, store=True, shareable=True, share_waiting=True, reason=Reason.EXPLICIT)
    if status in NOT_FOUND:
        return replace(known, share_waiting=not credentials)
    # A redirect without lifetime may be made for one viewer (a token in Location): not even for those who wait.
    return replace(known, not_shareable_for_s=NOT_SHAREABLE_S)


def _partial(known: Verdict, credentials: bool) -> Verdict:
    # RFC 9111 section 3.4 and RFC 9110 section 15.3.7.3: combined under the same strong validator only. Last-Modified
    # can be strong too (RFC 9110 section 8.8.2.2), but by a guess about the origin's clock that we don't make.
    if not known.etag_is_strong or known.partial is None or known.partial.total is None:
        return replace(known, reason=Reason.PARTIAL_WEAK)
    shares = is_fresh_on_arrival(known) or not credentials
    return replace(known, reason=Reason.PARTIAL, shareable=True, share_waiting=shares)


def _lasting(
    known: Verdict, status: int, lifetime_s: float, reason: Reason, credentials: bool, is_media: bool
) -> Verdict:
    """A whole response: stored while fresh, or because it can be validated or served stale."""
    known = replace(known, lifetime_s=lifetime_s)
    if is_fresh_on_arrival(known):
        return replace(known, store=True, shareable=True, share_waiting=True, reason=reason)
    has_word = known.has_explicit_lifetime or known.must_validate or lifetime_s > 0
    is_medium = is_media and (known.kind in live.PLAYLISTS or known.kind in live.SEGMENTS)
    can_be_stale = not known.forbids_stale and (
        known.stale_while_revalidate_s > 0 or known.stale_if_error_s > 0 or is_medium
    )
    # A viewer's max-stale may want what came stale already, from a cache behind us (RFC 9111 section 5.2.1.2).
    can_be_stale = can_be_stale or (not is_media and not known.forbids_stale and lifetime_s > 0)
    store = (has_word or status in _STORED_TO_VALIDATE) and (has_validator(known) or can_be_stale)
    # RFC 9111 section 4: joining is reuse. What is not fresh answers those who asked before it was fetched (DESIGN.md
    # section 5, validation). Without a word of the origin only in profile media, where all of them ask the origin the
    # same, and never a key.
    shares = not credentials and known.kind is not Kind.KEY and (is_media or has_word)
    return replace(
        known,
        store=store,
        shareable=store,
        share_waiting=shares,
        reason=Reason.VALIDATE if store or has_word else Reason.NO_LIFETIME,
        not_shareable_for_s=0.0 if store or shares else NOT_SHAREABLE_S,
    )


def _waiting_status(status: int, is_media: bool) -> int:
    # no-store forbids to use the response (RFC 9111 section 5.2.2.5), but that the origin is in trouble is ours to say.
    if not is_media or (status < 500 and status != 429):
        return 0
    return 503 if status in (429, 503) else 502


def may_answer_waiting(verdict: Verdict, request_fields: Fields, rules: OriginRules) -> bool:
    """Whether one waiting request, whose variant matches, may be answered with the response that it waited for.

    A fresh shared response serves all (RFC 9111 section 4); one that is not, those who sent no credentials either.
    """
    if verdict.shareable and is_fresh_on_arrival(verdict):
        return verdict.share_waiting
    return verdict.share_waiting and not _has_credentials(request_fields, rules)


def with_manifest(
    verdict: Verdict, manifest: Manifest | None, rules: OriginRules, *, is_blocking: bool = False
) -> Verdict:
    """The verdict on a playlist once its body has been read: kind, default lifetime and stale limit by what it is.

    A lifetime that the origin gave stays. `manifest` None: it could not be read, nothing changes.
    """
    if manifest is None or rules.profile != "media" or verdict.kind not in live.PLAYLISTS:
        return verdict
    limit_s = live.stale_limit_s(manifest.kind, manifest)
    lifetime_s = verdict.lifetime_s
    if verdict.reason is Reason.DEFAULT:
        lifetime_s = verdict.response_delay_s + live.lifetime_s(manifest.kind, manifest, is_blocking=is_blocking)
    return replace(
        verdict,
        kind=manifest.kind,
        lifetime_s=lifetime_s,
        stale_limit_s=UNLIMITED_S if limit_s is None else limit_s,
    )


def invalidates(method: bytes, status: int) -> bool:
    """Whether the answer to this method makes the stored responses of its target invalid (RFC 9111 section 4.4)."""
    # Unknown methods count as unsafe (RFC 9110 section 9.2.1); a failed request invalidates nothing.
    return method not in (b"GET", b"HEAD", b"OPTIONS", b"TRACE") and 200 <= status < 400


def _is_plain(request_fields: Fields) -> bool:
    """Whether nothing in a request is odd enough to have provoked an error that others would not have got: it is small,
    printable, and asks for no part and no expectation (the CPDoS classes: oversized, meta character, override)."""
    if sum(len(name) + len(value) for name, value in request_fields) > PLAIN_BYTES_MAX:
        return False
    if any(has(request_fields, name) for name in (b"range", b"expect", b"upgrade", b"te")):
        return False
    return all(is_token(name) and _PRINTABLE.fullmatch(value) for name, value in request_fields)


def _has_credentials(request_fields: Fields, rules: OriginRules) -> bool:
    """Whether the origin saw who asked: by Authorization, or by Cookie where cookies travel."""
    if has(request_fields, b"authorization") and b"authorization" not in rules.credential_headers:
        return True
    if not travels(b"cookie", rules):
        return False
    pairs = (pair.strip(b" \t") for line in get_all(request_fields, b"cookie") for pair in line.split(b";"))
    return any(pair and pair.partition(b"=")[0] not in rules.credential_cookies for pair in pairs)


def _is_for_authorized(directives: Directives) -> bool:
    # RFC 9111 section 3.5
    return any(directives.allows(name) for name in (b"public", b"must-revalidate", b"s-maxage"))


def _overrides_private(rules: OriginRules, kind: Kind, directives: Directives, response_fields: Fields) -> bool:
    return (
        rules.override_private
        and rules.profile == "media"
        and (kind in live.PLAYLISTS or kind in live.SEGMENTS)
        and (b"no-store" in directives or b"private" in directives)
        and not has(response_fields, b"set-cookie")
    )


def _overridden(directives: Directives) -> Directives:
    """What stays of directives whose no-store or private policy overrides.

    `no-store, no-cache, max-age=0` is one way of saying no-store, so its other words (and Expires) go with it; a
    positive lifetime and the stale prohibitions stay.
    """
    kept = directives.without(b"no-store", b"private", b"no-cache")
    return kept.without(*(name for name in (b"s-maxage", b"max-age") if not kept.seconds(name)))


def _vary(status: int, response_fields: Fields, rules: OriginRules) -> tuple[bytes, ...] | None:
    """Names that select the variant; None: nothing ever matches (RFC 9111 section 4.1, RFC 9110 section 12.5.5)."""
    names = {member.lower() for member in get_list(response_fields, b"vary")}
    if b"*" in names or not all(is_token(name) for name in names):
        return None
    # A field that never reaches the origin cannot have changed its answer: `Vary: User-Agent` costs media nothing. Host
    # travels where policy says so.
    names = {name for name in names if name == b"host" or travels(name, rules)} - {*rules.credential_headers}
    # Two that origins forget: a gzip body without Vary would reach who cannot read it, and browsers refuse to one page
    # what was allowed to another page's Origin. Not so for errors: no page reads them, and those who wait share them.
    if any(coding.lower() != b"identity" for coding in get_list(response_fields, b"content-encoding")):
        names.add(b"accept-encoding")
    if rules.profile == "media" and status < 400 and get_all(response_fields, b"access-control-allow-origin") != [b"*"]:
        names.add(b"origin")
    return tuple(sorted(names))
