"""May this viewer have it? Answers the workers' question: by verifying the credential, or by asking the origin.

Judged is what `Grants.credential` says that the request presents, the path, and nothing else: a yes is remembered by a
digest of just that. Verification itself: protocols/tokens.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from accelerator import clock
from accelerator.dataplane import Grants
from accelerator.protocols.fields import Field, get_first
from accelerator.protocols.tokens.presented import split_target
from accelerator.protocols.tokens.scope import directory_of, is_ambiguous
from accelerator.protocols.tokens.verdict import Reason
from accelerator.protocols.upstream_fields import upstream_fields
from accelerator.services.objects.heads import NS
from accelerator.services.origins.request import plain_host

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane, Exchange
    from accelerator.errors import OriginError
    from accelerator.io.origin import Upstream
    from accelerator.io.response import Response
    from accelerator.io.upstream import Call
    from accelerator.services.origins.credential_rule import CredentialRule
    from accelerator.services.origins.origins import Origin

# How long a no is remembered: a player that asks again and again with a bad token costs the control plane nothing.
REFUSED_S = 5.0
# `when_unreachable: last-yes`: how old that yes may be, and how many are remembered.
LAST_YES_S = 86_400.0
LAST_YES_MAX = 65_536
Credential = tuple[list[bytes], list[Field], list[bytes]]


class Authoriser:
    """`note_refused(origin, reason)` hears each refusal that was judged here; repeated ones stay in the workers."""

    def __init__(self, dataplane: DataPlane, note_refused: Callable[[Origin, str], None]) -> None:
        self._plane = dataplane.plane
        self._grants = Grants(dataplane.plane)
        self._note_refused = note_refused
        self._rules: Mapping[str, CredentialRule | None] = {}
        self._last_yes: OrderedDict[bytes, int] = OrderedDict()
        self._secret = os.urandom(32)
        self._asking: set[_Question] = set()
        self.refusals: Counter[str] = Counter()

    def apply(self, rules: Mapping[str, CredentialRule | None]) -> None:
        """Takes the rules of a policy over. What was allowed by other keys is not any more."""
        if any(rule is not None and rule != rules.get(name) for name, rule in self._rules.items()):
            self._grants.forget()
            self._last_yes.clear()
        self._rules = rules

    def stop(self) -> None:
        for question in list(self._asking):
            question.cancel()

    def judge(self, exchange: Exchange, origin: Origin, request: Any, site: bytes) -> None:
        """Answers the exchange: look again, or an error."""
        rule = origin.judge
        if rule is None:  # the policy has changed since: so have the worker's tables
            exchange.match()
            return
        pieces = self._grants.credential(exchange.origin, exchange.head)
        if pieces is None:
            self.refuse(exchange, origin, rule, Reason.TOO_LONG)
            return
        path: bytes = request.path
        key = self._plane.key_of(exchange.origin, path if path.startswith(b"/") else b"/" + path)
        presented = _presented(pieces, rule)
        if rule.verifier is None:
            host = get_first(request.fields, b"host") or b""
            self._ask(exchange, origin, rule, key, presented, site, plain_host(host))
            return
        target, now_s = _target(key, presented), clock.wall_s()
        verdict = rule.verifier.verify(target, _fields(presented), now_s=now_s, method=request.method)
        if verdict.scope is None:
            self.refuse(exchange, origin, rule, verdict.reason)
            return
        is_directory = rule.covers_directory and verdict.scope.covers_directory(split_target(key)[0])
        self.allow(exchange, rule, is_directory, verdict.until_s - clock.wall_s())

    def allow(self, exchange: Exchange, rule: CredentialRule, is_directory: bool, most_s: float = 1e9) -> None:
        now_ns = clock.monotonic_ns()
        until_ns = now_ns + int(min(rule.authorise_for_s, most_s) * NS)
        self._grants.put(exchange.origin, exchange.head, is_directory, True, now_ns, until_ns)
        exchange.match()

    def refuse(self, exchange: Exchange, origin: Origin, rule: CredentialRule, reason: str, status: int = 0) -> None:
        """`status`: the origin's own, which is not remembered."""
        if not status:
            now_ns = clock.monotonic_ns()
            until_ns = now_ns + int(min(REFUSED_S, rule.authorise_for_s) * NS)
            self._grants.put(exchange.origin, exchange.head, False, False, now_ns, until_ns)
        self._plane.count("refused_credential")
        self.refusals[str(reason)] += 1
        self._note_refused(origin, str(reason))
        exchange.error(status or rule.refusal)

    # -- asking the origin ---------------------------------------------------------------------------------------------

    def _ask(
        self, exchange: Exchange, origin: Origin, rule: CredentialRule, key: bytes, presented: Credential, site: bytes,
        host: bytes,
    ) -> None:  # fmt: skip
        path = split_target(key)[0]
        if is_ambiguous(path):
            self.refuse(exchange, origin, rule, Reason.PATH)
            return
        unit = directory_of(path) if rule.covers_directory else key
        digest = hashlib.blake2s(key=self._secret, digest_size=16)
        headers = (b"%b:%b" % field for field in presented[1])
        for part in (b"%d" % origin.id, unit, *presented[0], *headers, *presented[2]):
            digest.update(b"%d:" % len(part) + part)
        host = host if origin.policy.upstream_host == "viewer" else b""
        fields = upstream_fields(_fields(presented), origin.rules, host=host, site=site, method=b"HEAD")
        question = _Question(self, exchange, origin, rule, digest.digest())
        self._asking.add(question)
        self._plane.count("upstream_requests")
        question.call = origin.client.request(b"HEAD", _target(key, presented), fields, question)

    def answered(self, question: _Question, status: int) -> None:
        """The origin's word; 0: it gave none."""
        self._asking.discard(question)
        exchange, origin, rule = question.exchange, question.origin, question.rule
        if origin.judge is not rule:  # a reload came between: what the old rule says is no grant under the new one
            exchange.match()
            return
        now_ns = clock.monotonic_ns()
        if 200 <= status < 300 or status == 304:
            self._last_yes.pop(question.digest, None)
            self._last_yes[question.digest] = now_ns
            if len(self._last_yes) > LAST_YES_MAX:
                self._last_yes.popitem(last=False)
            self.allow(exchange, rule, rule.covers_directory)
        elif status and status < 500 and status not in (408, 429):
            self._last_yes.pop(question.digest, None)
            # That something isn't there is no answer to whether one may see it, nor is it to be told to all who ask.
            self.refuse(exchange, origin, rule, f"origin-{status}", status if status in (404, 410) else 0)
        else:
            given_ns = self._last_yes.get(question.digest)
            is_kept = given_ns is not None and now_ns - given_ns < int(LAST_YES_S * NS)
            if rule.when_unreachable == "last-yes" and is_kept:
                self.allow(exchange, rule, rule.covers_directory)
            else:
                self.refuse(exchange, origin, rule, "origin-unreachable", 503)


class _Question:
    """The sink of one HEAD. A body, which there should be none of, goes nowhere."""

    def __init__(
        self, authoriser: Authoriser, exchange: Exchange, origin: Origin, rule: CredentialRule, digest: bytes
    ) -> None:
        self._authoriser = authoriser
        self.exchange, self.origin, self.rule, self.digest = exchange, origin, rule, digest
        self.call: Call | None = None
        self._is_answered = False

    def interim_received(self, response: Response) -> None:
        pass

    def head_received(self, response: Response, upstream: Upstream) -> None:
        self._answer(response.status)

    def get_buffer(self, size_hint: int) -> memoryview:
        return memoryview(bytearray(4096))

    def bytes_received(self, n: int) -> None:
        pass

    def ended(self) -> None:
        self._answer(0)

    def failed(self, error: OriginError, received_any: bool) -> None:
        self._answer(0)

    def cancel(self) -> None:
        if self.call is not None:
            self.call.cancel()
        self._answer(0)

    def _answer(self, status: int) -> None:
        if not self._is_answered:
            self._is_answered = True
            self._authoriser.answered(self, status)


def _presented(pieces: list[tuple[bytes, int, bytes]], rule: CredentialRule) -> Credential:
    """Parameters as written, fields, cookie pairs."""
    return (
        [text for place, _, text in pieces if place == b"p"],
        [(rule.places.headers[index], text) for place, index, text in pieces if place == b"h"],
        [text for place, _, text in pieces if place == b"c"],
    )


def _target(key: bytes, presented: Credential) -> bytes:
    """The key with the credential's parameters put back, behind the others."""
    if not presented[0]:
        return key
    return key + (b"&" if b"?" in key else b"?") + b"&".join(presented[0])


def _fields(presented: Credential) -> list[Field]:
    cookie: list[Field] = [(b"Cookie", b"; ".join(presented[2]))] if presented[2] else []
    return [*presented[1], *cookie]
