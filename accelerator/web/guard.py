"""Who may ask the admin listener for what: the Host field, other sites' pages, the admin token. Answers nothing.

A browser on the same network must not be made to read or change anything for a stranger's page: docs/decisions/0095.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping

from aiohttp import web
from aiohttp.http import HttpVersion10

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s]+)(?::[0-9]{0,5})?")
# So many wrong tokens from one address in so long, and the address has to wait, also with the right one.
FAILURES_MAX = 10
FAILURES_S = 60.0
ADDRESSES_MAX = 1024

COUNTERS: Mapping[str, str] = {
    "host_refused": "requests for a host that is not ours",
    "site_refused": "requests that another site's page made",
    "token_missing": "requests refused, the admin token was missing",
    "token_refused": "requests refused, the admin token was wrong",
    "token_waits": "requests refused, too many wrong tokens came from this address",
    "changes": "changes made through the dashboard",
}

# Told why somebody was refused, in one of few texts: "wrong Host", "another site's page", "wrong token", "too many ..."
NoteRefusal = Callable[[str], None]


class Guard:
    """Of one listener. `host`: what it is called besides IP literals and localhost. `token` None: changes are refused.
    `reads_freely`: reading needs no token."""

    def __init__(
        self,
        host: str,
        token: str | None,
        *,
        reads_freely: bool,
        now_s: Callable[[], float],
        note_refusal: NoteRefusal,
    ) -> None:
        self.reads_freely = reads_freely
        self.counts: Counter[str] = Counter()
        self._host = host.lower()
        self._token = token.encode() if token is not None else None
        self._now_s = now_s
        self._note_refusal = note_refusal
        # address -> (when its first failure of the running minute was, how many), the oldest first
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def is_our_host(self, request: web.BaseRequest) -> bool:
        hosts = request.headers.getall("Host", [])
        if not hosts and request.version <= HttpVersion10:
            return True  # load balancers probe so; no browser can be made to
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is not None and self._is_name_of_ours(match["name"].lower()):
            return True
        self.counts["host_refused"] += 1
        self._note_refusal("wrong Host")
        return False

    def _is_name_of_ours(self, name: str) -> bool:
        if name in ("localhost", self._host):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def is_same_site(self, request: web.BaseRequest) -> bool:
        """Whether no other site's page made it. Programs send neither field; browsers send Sec-Fetch-Site to hosts they
        trust (loopback among them), and Origin with every POST and every cross-origin request that could be read."""
        sites = request.headers.getall("Sec-Fetch-Site", [])
        origins = request.headers.getall("Origin", [])
        host = request.headers.get("Host", "").lower()
        is_same = all(site in ("same-origin", "none") for site in sites) and all(
            origin.lower() in (f"http://{host}", f"https://{host}") for origin in origins
        )
        if not is_same:
            self.counts["site_refused"] += 1
            self._note_refusal("another site's page")
        return is_same

    def refusal(self, request: web.BaseRequest) -> tuple[int, str] | None:
        """(status, kind) where the request doesn't bring the admin token; RFC 6750 section 3.1."""
        if self._token is None:
            return 503, "no-token"
        fields = request.headers.getall("Authorization", [])
        if not fields:
            self.counts["token_missing"] += 1
            return 401, "token-missing"
        address = request.remote or ""
        now_s = self._now_s()
        began_s, n = self._failures.get(address, (now_s, 0))
        if now_s - began_s >= FAILURES_S:
            began_s, n = now_s, 0
        if n >= FAILURES_MAX:
            self.counts["token_waits"] += 1
            self._note_refusal("too many wrong tokens")
            return 429, "token-waits"
        scheme, _, given = fields[0].partition(" ")
        # In constant time: how long a comparison takes must not say how much of a guess was right.
        is_right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)
        if is_right and scheme.lower() == "bearer" and len(fields) == 1:
            self._failures.pop(address, None)
            return None
        self.counts["token_refused"] += 1
        self._failures[address] = (began_s, n + 1)
        if len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)
        self._note_refusal("wrong token")
        return 401, "token-wrong"

    def counters(self) -> dict[str, tuple[float, str]]:
        return {f"admin_{name}": (self.counts[name], f"Admin listener: {text}") for name, text in COUNTERS.items()}
