"""What happens to origins and their viewers' credentials, told once per cause: in the log, as events, and to
the security log. Judges nothing."""

from __future__ import annotations

import logging

from accelerator import clock
from accelerator.errors import OriginError
from accelerator.io.origin import UpstreamEvent
from accelerator.services.logs.events import Events
from accelerator.services.logs.lines import Causes, about
from accelerator.services.logs.security import SecurityLog
from accelerator.services.origins.origins import Origin

log = logging.getLogger("accelerator")

_EVENT_KINDS = {
    "breaker-open": "origin-failing", "breaker-closed": "origin-recovered",
    "dns-failed": "origin-failing", "dns-returned": "origin-recovered",
}  # fmt: skip
_EVENT_ADVICE = {
    "breaker-open": "look whether the origin and the way to it work; it is tried again by itself",
    "dns-failed": "look at the resolver; the last address is used as long as resolve_grace allows",
}

# Errors of a request upstream that are about who the other side is.
_CERTIFICATE_KINDS = frozenset({"tls", "proxy-login", "forbidden-address"})


class OriginNotes:
    def __init__(self, causes: Causes, events: Events, security: SecurityLog) -> None:
        self._causes = causes
        self._events = events
        self._security = security

    def error(self, origin: Origin, error: OriginError) -> None:
        end = self._causes.due(f"{origin.name}:{error.kind}", clock.monotonic_ns())
        if end is not None:
            log.warning(
                "origin %s: %s: %s%s", origin.name, error.kind, error.message, end,
                extra=about(event="origin-error", origin=origin.name, error=error.kind),
            )  # fmt: skip
        self._events.note(
            "origin-error", f"origin {origin.name}: {error.kind}", why=error.message,
            cause=f"{origin.name}:{error.kind}",
        )  # fmt: skip
        if error.kind in _CERTIFICATE_KINDS:
            self._security.refused("upstream", f"origin {origin.name}: {error.kind}: {error.message}")

    def refused(self, origin: Origin, reason: str) -> None:
        """A viewer's credential was judged and refused: why, never whose."""
        self._security.refused("credential", f"origin {origin.name}: {reason}")
        self._events.note(
            "credential-refused", f"origin {origin.name}: viewers' credentials are refused: {reason}",
            cause=f"{origin.name}:credential:{reason}",
        )  # fmt: skip

    def event(self, origin: str, event: UpstreamEvent) -> None:
        level = logging.INFO if event.kind in ("dns-returned", "breaker-closed") else logging.WARNING
        end = self._causes.due(f"{origin}:{event.kind}:{event.subject}", clock.monotonic_ns())
        if end is not None:
            log.log(
                level, "origin %s: %s: %s %s%s", origin, event.kind, event.subject, event.message, end,
                extra=about(event=_EVENT_KINDS.get(event.kind, event.kind), origin=origin),
            )  # fmt: skip
        self._events.note(
            _EVENT_KINDS.get(event.kind, event.kind), f"origin {origin}: {event.subject}", why=event.message,
            advice=_EVENT_ADVICE.get(event.kind, ""), cause=f"{origin}:{event.kind}:{event.subject}",
        )  # fmt: skip
