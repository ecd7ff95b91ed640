"""What goes to the origin: which request fields, and which values tell variants apart. The target goes up as received.

Profile media sends an allow-list, because a field that can change a response without standing in the key or in Vary
lets one viewer poison the answer of all others (reliability.md section 4). Who wants more writes `forward: [NAME]`:

    Authorization    sent: access control must work, and RFC 9111 section 3.5 keeps its answers from other viewers
    Origin           sent: origins allow CORS by it; an answer counts as varying by it unless it allows `*`
    Accept-Encoding  sent as `gzip` or not at all, in both profiles: two variants, not dozens
    Via, CDN-Loop    sent with our own entry: loops are found by them
    Accept           not sent: `*/*` for all. User-Agent: ours for all. Both are negotiated on without a Vary too often
    Cookie           not sent: sessions make answers personal without a word. With `forward: [Cookie]` see cache_decide
    Accept-Language, Referer, DNT, Sec-*, X-*, CMCD-*
                     not sent: players choose languages by URL; of CMCD the origin would see the misses only, so a
                     wrong picture, and viewers' session names that should stay on site

Docs: docs/decisions/0010-media-allow-list.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from accelerator.protocols.byte_ranges import ByteRange, written
from accelerator.protocols.fields import (
    HOP_BY_HOP,
    Field,
    Fields,
    get_all,
    get_first,
    get_list,
    parse_digits,
    without_hop_by_hop,
)
from accelerator.protocols.origin_rules import OriginRules

MEDIA_FORWARDED = frozenset({b"authorization", b"origin"})
USER_AGENT = b"video-accelerator"
_HOPS_MAX = 255  # more than any chain has

# Ours to write: the client's conditions are answered from the store (RFC 9111 section 4.3.1), so are its ranges.
# What a body is; without it nobody could read one.
_CONTENT = frozenset({b"content-type", b"content-encoding", b"content-language"})
_CONDITIONS = frozenset(
    {b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range"}
)
_OWN = frozenset({b"host", b"via", b"cdn-loop", b"content-length", b"expect", b"max-forwards", b"http2-settings"})
# DESIGN.md section 5; each has let a request override what the rest of the chain saw.
_DENIED = frozenset(
    {
        b"forwarded",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-http-method-override",
        b"x-http-method",
        b"x-method-override",
    }
)
_DENIED_PREFIXES = (b"x-forwarded-", b"proxy-")


def upstream_fields(
    request_fields: Fields,
    rules: OriginRules,
    *,
    host: bytes,
    site: bytes,
    method: bytes = b"GET",
    validators: tuple[bytes | None, bytes | None] | None = None,
    byte_ranges: Sequence[ByteRange] = (),
    if_range: bytes | None = None,
) -> list[Field]:
    """The fields to send, Host first (left out where `host` is empty: the upstream client writes it then).

    `validators`: (ETag, Last-Modified) of our stored response. `byte_ranges`: none is
    the whole body. `if_range`: an ETag or a date. Conditions of the client travel only with methods
    other than GET and HEAD: `If-Match` on a PUT is for the origin. Content-Length and Transfer-Encoding are the
    upstream client's.
    """
    sent: list[Field] = [(b"Host", host)] if host else []
    if rules.profile == "media":
        sent += _media_fields(request_fields, rules, method)
    else:
        sent += _generic_fields(request_fields, method)
    if validators is not None:
        # RFC 9111 section 4.3.1: the entity tag MUST, the date SHOULD be sent too
        etag, last_modified = validators
        if etag:
            sent.append((b"If-None-Match", etag))
        if last_modified:
            sent.append((b"If-Modified-Since", last_modified))
    if byte_ranges:
        sent.append((b"Range", written(byte_ranges)))
        if if_range:
            sent.append((b"If-Range", if_range))
    # RFC 9110 section 7.6.3 and RFC 8586 section 2: appended, what was there is kept
    sent.append((b"Via", b", ".join([*get_all(request_fields, b"via"), b"1.1 " + site])))
    sent.append((b"CDN-Loop", b", ".join([*get_all(request_fields, b"cdn-loop"), site])))
    return sent


def is_loop(request_fields: Fields, site: bytes) -> bool:
    """Whether this request has passed here before (RFC 9110 section 7.6.3, RFC 8586 section 2)."""
    ours = site.lower()
    for member in get_list(request_fields, b"cdn-loop"):
        if member.partition(b";")[0].strip(b" \t").lower() == ours:
            return True
    for member in get_list(request_fields, b"via"):
        protocol_and_host = member.split(None, 2)
        if len(protocol_and_host) >= 2 and protocol_and_host[1].lower() == ours:
            return True
    return False


def travels(name: bytes, rules: OriginRules) -> bool:
    """Whether a viewer's field of this lower-case name can reach the origin, so change its answer."""
    if rules.profile == "generic":
        return not _is_denied(name)
    return name == b"accept-encoding" or name in _media_names(rules)


def variant_values(request_fields: Fields, vary: Sequence[bytes], rules: OriginRules) -> tuple[bytes | None, ...]:
    """The value of each field of `Vary` as the origin saw it; None: absent. Equal tuples select the same variant.

    Taken from what travels, not from what the viewer sent: else `Connection: Accept-Language` would store the
    origin's default language as the answer to the language that the viewer named. Lines are joined and white space is
    normalised (RFC 9111 section 4.1); Accept-Encoding is b"gzip" or None.
    """
    sent = without_hop_by_hop(request_fields)
    values: list[bytes | None] = []
    for name in vary:
        if name == b"accept-encoding":
            values.append(b"gzip" if accepts_gzip(request_fields) else None)
        elif not travels(name, rules):
            values.append(None)
        else:
            lines = get_all(sent, name)
            values.append(b", ".join(b" ".join(line.split()) for line in lines) if lines else None)
    return tuple(values)


def accepts_gzip(request_fields: Fields) -> bool:
    """Whether Accept-Encoding names gzip (RFC 9110 section 12.5.3), without q=0. `*` and absence count as no.

    The data plane sorts viewers into variants by the same question (has_gzip in ext/vary.pyx). Where this said yes and
    that said no, a gzip body would be stored for those who can't read it; so this must never be the more generous one.
    """
    for member in get_list(request_fields, b"accept-encoding"):
        coding, _, parameters = member.partition(b";")
        if coding.strip(b" \t").lower() == b"gzip":
            return not _is_zero(parameters)
    return False


def _media_names(rules: OriginRules) -> frozenset[bytes]:
    extra = {name for each in rules.forward if not _is_denied(name := each.lower()) and name != b"accept-encoding"}
    return MEDIA_FORWARDED | frozenset(rules.credential_headers) | extra


def _media_fields(request_fields: Fields, rules: OriginRules, method: bytes) -> list[Field]:
    names = _media_names(rules)
    if method not in (b"GET", b"HEAD"):
        names |= _CONTENT
    sent = [field for field in without_hop_by_hop(request_fields) if field[0].lower() in names]
    if b"cookie" not in names and rules.credential_cookies:
        # The credential alone: a session beside it could make the answer personal.
        pairs = [pair.strip(b" \t") for line in get_all(request_fields, b"cookie") for pair in line.split(b";")]
        kept = [pair for pair in pairs if pair.partition(b"=")[0] in rules.credential_cookies]
        sent += [(b"Cookie", b"; ".join(kept))] if kept else []
    if b"accept" not in names:
        sent.append((b"Accept", b"*/*"))
    if b"user-agent" not in names:
        sent.append((b"User-Agent", USER_AGENT))
    if accepts_gzip(request_fields):
        sent.append((b"Accept-Encoding", b"gzip"))
    return sent


def _generic_fields(request_fields: Fields, method: bytes) -> list[Field]:
    # RFC 9110 section 5.1: unknown fields are forwarded. Answers to other methods than these are never stored, so their
    # conditions and codings are between viewer and origin.
    is_stored = method in (b"GET", b"HEAD")
    sent = [
        field
        for field in without_hop_by_hop(request_fields)
        if (not _is_denied(name := field[0].lower()) or (name in _CONDITIONS and not is_stored))
        and not (name == b"accept-encoding" and is_stored)
    ]
    if is_stored and accepts_gzip(request_fields):
        sent.append((b"Accept-Encoding", b"gzip"))
    if method == b"OPTIONS":  # RFC 9110 section 7.6.2; 0 is answered by the worker, TRACE never passes
        hops = parse_digits(get_first(request_fields, b"max-forwards") or b"", _HOPS_MAX)
        if hops:
            sent.append((b"Max-Forwards", b"%d" % (hops - 1)))
    return sent


def _is_denied(name: bytes) -> bool:
    # CGI-like origins read X_Forwarded_For as X-Forwarded-For
    dashed = name.replace(b"_", b"-")
    return (
        dashed in HOP_BY_HOP
        or dashed in _CONDITIONS
        or dashed in _OWN
        or dashed in _DENIED
        or dashed.startswith(_DENIED_PREFIXES)
    )


def _is_zero(parameters: bytes) -> bool:
    for parameter in parameters.lower().split(b";"):
        name, _, value = parameter.strip(b" \t").partition(b"=")
        if name.strip(b" \t") == b"q":
            value = value.strip(b" \t")
            return bool(value) and not value.strip(b"0. \t")
    return False

