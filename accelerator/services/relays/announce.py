"""Announces what relays send to groups (SAP, RFC 2974, with SDP, RFC 8866): to whom the stream itself goes, and no
further. What is announced is relays.py's choice, how it is written protocols.sap's and protocols.sdp's.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, ip_address

from accelerator.errors import AcceleratorError
from accelerator.io.datagram import open_output
from accelerator.protocols import sap
from accelerator.protocols.sdp import Connection, Description, Media, Origin, write

_TYPE_TS = 33
# RFC 3551 section 6: below it a number says what it is; from 96 on only an rtpmap does.
_STATIC_END = 35
_VIDEO_FROM = 24


@dataclass(frozen=True, slots=True)
class Session:
    """One stream on one link. `source`: the address that it comes from."""

    name: str
    group: str
    port: int
    is_rtp: bool
    payload_type: int
    ttl: int
    interface: str
    source: str
    carries_ts: bool = True

    @property
    def can_be_described(self) -> bool:
        """What a dynamic payload type is, nobody told us: of these only MPEG-TS is known by its packets."""
        return not self.is_rtp or self.carries_ts or 0 <= self.payload_type < _STATIC_END


@dataclass(slots=True)
class _Running:
    socket: socket.socket
    to: tuple[str, int]
    payload: bytes
    due_s: float


def describe(session: Session, version: int) -> bytes:
    """`version` rises with each change of the session."""
    group = ip_address(session.group)
    key = f"{session.name}|{session.group}|{session.port}|{session.interface}".encode()
    number = int.from_bytes(sha256(key).digest()[:4], "big")
    family = f"IP{group.version}"
    kind = _TYPE_TS if session.payload_type < 0 or not session.is_rtp else session.payload_type
    media = "audio" if session.is_rtp and not session.carries_ts and kind < _VIDEO_FROM else "video"
    # RFC 8866 section 6.6; MP2T: RFC 3555 section 3.
    named = (("rtpmap", f"{kind} MP2T/90000"),) if session.is_rtp and session.carries_ts and kind != _TYPE_TS else ()
    return write(
        Description(
            Origin("-", number, version, session.source),
            session.name,
            Connection(group, session.ttl if isinstance(group, IPv4Address) else None),
            (("type", "broadcast"), ("source-filter", f" incl IN {family} {session.group} {session.source}")),
            (Media(media, session.port, "RTP/AVP" if session.is_rtp else "udp", (str(kind),), attributes=named),),
        )
    )


class Announcer:
    """`follow` each second with what is to be announced now; sessions that are gone are deleted by a last word."""

    def __init__(self) -> None:
        self._running: dict[Session, _Running] = {}
        self.n_failed = 0

    def follow(self, sessions: Iterable[Session], now_s: float, wall_s: float) -> None:
        wanted = dict.fromkeys(sessions)
        for session in [each for each in self._running if each not in wanted]:
            self._end(session)
        for session in wanted:
            running = self._running.get(session) or self._begin(session, now_s, wall_s)
            if running is not None and now_s >= running.due_s:
                self._send(session, running, is_deletion=False)
                size = len(running.payload) + 32
                # Others' announcements are not heard: the share is of ours alone.
                running.due_s = now_s + sap.interval_s(len(wanted), size, random.random())

    def close(self) -> None:
        for session in list(self._running):
            self._end(session)

    def _begin(self, session: Session, now_s: float, wall_s: float) -> _Running | None:
        try:
            made = open_output(is_v6=":" in session.group, interface=session.interface, ttl=session.ttl)
        except AcceleratorError:
            self.n_failed += 1
            return None
        running = _Running(made, (sap.group_for(session.group), sap.PORT), describe(session, int(wall_s)), now_s)
        self._running[session] = running
        return running

    def _end(self, session: Session) -> None:
        running = self._running.pop(session)
        self._send(session, running, is_deletion=True)
        running.socket.close()

    def _send(self, session: Session, running: _Running, *, is_deletion: bool) -> None:
        payload = running.payload
        if is_deletion:  # section 5: the o= line is enough to say which
            payload = b"\r\n".join(payload.split(b"\r\n")[:2]) + b"\r\n"
        announced = sap.Announcement(ip_address(session.source), sap.hash_of(running.payload), payload, is_deletion)
        try:
            running.socket.sendto(sap.write(announced), running.to)
        except OSError:
            self.n_failed += 1
