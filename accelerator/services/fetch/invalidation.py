"""What a request that may have changed something makes unusable (RFC 9111 section 4.4). Fetches and answers nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from accelerator.protocols.fields import get_first

if TYPE_CHECKING:
    from accelerator.io.response import Response
    from accelerator.services.fetch.ledger import Ledger
    from accelerator.services.origins.origins import Origin
    from accelerator.services.origins.request import UpstreamRequest

# Safe by their definitions (RFC 9110 section 9.2.1, RFC 4918, 3253, 5323, and QUERY's draft). Of others we can't know.
SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"REPORT", b"SEARCH", b"QUERY"})


def invalidate(
    ledger: Ledger, origin: Origin, method: bytes, key: tuple[int, bytes], source: UpstreamRequest, response: Response
) -> None:
    """After a non-error answer to an unsafe or unknown method: the target, and what Location and Content-Location name
    of the same origin, with all variants; what is being fetched of them just now is not stored."""
    if method in SAFE_METHODS or not 200 <= response.status < 400:
        return
    keys = {key}
    for name in (b"location", b"content-location"):
        reference = get_first(response.fields, name)
        path = None if reference is None else _same_origin_path(origin, source, reference)
        if path is not None:
            keys.add((origin.id, ledger.dataplane.plane.key_of(origin.id, path)))
    ledger.withdraw(lambda origin_id, path: (origin_id, path) in keys)
    for each in keys:
        for stored in ledger.dataplane.plane.find(*each):
            stored.detach()
            ledger.dataplane.plane.count("invalidated")
        if ledger.disk is not None:
            ledger.disk.forget(origin, each[1])


def _same_origin_path(origin: Origin, source: UpstreamRequest, reference: bytes) -> bytes | None:
    """Path and query of a reference, where its authority is the viewer's or an upstream's; others it must not touch."""
    asked = (get_first(source.fields, b"host") or b"").lower().decode("latin-1")
    try:
        parts = urlsplit(urljoin("http://box" + source.target.decode("latin-1"), reference.decode("latin-1")))
        authority = parts.netloc.lower()
    except ValueError:  # no URL: urlsplit refuses "http://["
        return None
    upstreams = {(each.scheme, each.authority.decode("latin-1").lower()) for each in origin.client.settings.upstreams}
    # Neither scheme nor listener is part of the key: behind a TLS listener the same is named by https.
    plain = (parts.scheme, _plain(parts.scheme, authority))
    is_ours = parts.scheme in ("http", "https") and plain[1] in ("box", _plain(parts.scheme, asked))
    if not is_ours and plain not in {(scheme, _plain(scheme, name)) for scheme, name in upstreams}:
        return None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return path.encode("latin-1", "replace")


def _plain(scheme: str, authority: str) -> str:
    """An authority without its scheme's own port (RFC 9110 section 4.2.3)."""
    return authority.removesuffix(":443" if scheme == "https" else ":80")
