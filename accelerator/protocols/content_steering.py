"""The content steering manifest that HLS and DASH players ask for (RFC 8216bis section 7, ETSI TS 103 998). Pure.

It names pathways in an order. A player whose pathway fails goes to the next one by itself, at once, and keeps away from
the dead one; so a box that died costs its viewers one failed request. The document may stand on any web server: the box
need not live for players to leave it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

CONTENT_TYPE = "application/json"
# A player that changes its pathway while its first piece comes may stand still (hls.js up to 1.7.4). A first piece that
# takes longer than this plays nowhere anyway.
FIRST_TTL_S = 5


def steering_manifest(
    pathways: Sequence[str],
    ttl_s: float,
    *,
    clone_of: str | None = None,
    host: str | None = None,
    reload: str | None = None,
) -> dict[str, Any]:
    """With `clone_of` the first pathway is not in the manifest: it is that one, with `host` in its URLs."""
    document: dict[str, Any] = {"VERSION": 1, "TTL": max(1, math.ceil(ttl_s))}
    if reload:
        document["RELOAD-URI"] = reload
    document["PATHWAY-PRIORITY"] = list(pathways)
    if clone_of and host:
        document["PATHWAY-CLONES"] = [
            {"BASE-ID": clone_of, "ID": pathways[0], "URI-REPLACEMENT": {"HOST": host}},
        ]
    return document


def first_manifest(document: dict[str, Any], reload: str) -> dict[str, Any]:
    """What a player gets first, where `document` is what it gets at `reload` afterwards: the preferred pathway comes
    last, so that the player stays where its manifest lets it begin until it plays."""
    preferred, *others = document["PATHWAY-PRIORITY"]
    return document | {"TTL": FIRST_TTL_S, "RELOAD-URI": reload, "PATHWAY-PRIORITY": [*others, preferred]}


def steering_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"
