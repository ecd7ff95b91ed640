"""Asks each origin of a policy once, as the box would: name, connection, TLS, one small answer. Judges nothing.

Many at once, each with a time limit of its own, so that a dead origin costs the doctor no more than a slow one.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerator.doctor.facts import Answer, Upstream
from accelerator.doctor.observe_links import number_of

TIMEOUT_S = 3.0
# All of them: the doctor is over in ten seconds, of which two are for listening.
ALL_S = 6.0
_IP_MTU, _IPV6_MTU = 14, 24


@dataclass(frozen=True, slots=True)
class Question:
    """One `from` of an origin. `target`: path and query to ask for, `name`: the Host that the origin sees."""

    origin: str
    scheme: str
    host: str
    port: int
    url: str
    name: str
    target: str = "/"
    resolve: tuple[str, ...] = ()
    via: tuple[str, int] | None = None
    ca: str = ""


def ask_all(questions: Sequence[Question]) -> list[Upstream]:
    """In their order. All at once, and none for longer than ALL_S: a resolver that doesn't answer can't be interrupted,
    so its thread is left behind."""
    found: list[Upstream | None] = [None] * len(questions)
    ends_s = time.monotonic() + ALL_S

    def take(index: int) -> None:
        found[index] = ask(questions[index], ends_s)

    threads = [threading.Thread(target=take, args=(index,), daemon=True) for index in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, ends_s + 0.2 - time.monotonic()))
    return [seen if seen is not None else _unanswered(each) for seen, each in zip(found, questions, strict=True)]


def _unanswered(question: Question) -> Upstream:
    host = question.via[0] if question.via else question.host
    return Upstream(question.origin, question.url, host, stage="dns", fault=f"the resolver is silent for {ALL_S:.0f} s")


def ask(question: Question, ends_s: float) -> Upstream:
    """One of them, up to where it fails."""
    host, port = question.via or (question.host, question.port)
    via = f"{host}:{port}" if question.via else ""
    begun_s = time.monotonic()
    pinned = question.resolve
    seen = Upstream(question.origin, question.url, host, is_pinned=bool(pinned), via=via)
    try:
        addresses = pinned or tuple(
            dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        )
    except (OSError, UnicodeError) as fault:
        why = fault.strerror if isinstance(fault, socket.gaierror) else str(fault)
        return replace(seen, stage="dns", fault=str(why or fault).lower())
    seen = replace(
        seen, addresses=addresses, dns_s=0.0 if pinned else time.monotonic() - begun_s,
        own_addresses=() if pinned or _is_literal(host) else tuple(each for each in addresses if is_own(each)),
    )  # fmt: skip
    if seen.own_addresses:
        return seen
    made, fault_text = _connect(addresses, port, ends_s)
    if made is None:
        return replace(seen, stage="connect", fault=fault_text)
    with contextlib.closing(made):
        seen = replace(seen, mtu=_path_mtu(made), link_mtu=_link_mtu(made))
        return _ask_over(made, question, seen)


def _is_literal(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return False


def is_own(address: str) -> bool:
    """Whether this box has the address: nobody else's can be bound to, unless ip_nonlocal_bind lets anybody's be."""
    kind = "ipv6" if ":" in address else "ipv4"
    if number_of(f"/proc/sys/net/{kind}/ip_nonlocal_bind"):
        return False
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as trying:
        try:
            trying.bind((address, 0))
        except OSError:
            return False
    return True


def _connect(addresses: Sequence[str], port: int, ends_s: float) -> tuple[socket.socket | None, str]:
    why = "it has no address"
    for address in addresses[:3]:
        patience_s = max(0.1, min(TIMEOUT_S, ends_s - time.monotonic()))
        try:
            made = socket.create_connection((address, port), timeout=patience_s)
            made.settimeout(max(0.1, min(TIMEOUT_S, ends_s - time.monotonic())))
            return made, ""
        except TimeoutError:
            why = f"no answer from {address} port {port} within {patience_s:.0f} s"
        except OSError as fault:
            why = f"{address} port {port}: {(fault.strerror or str(fault)).lower()}"
    return None, why


def _path_mtu(made: socket.socket) -> int:
    level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if made.family == socket.AF_INET6 else (0, _IP_MTU)
    try:
        return made.getsockopt(level, option)
    except OSError:
        return 0


def _link_mtu(made: socket.socket) -> int:
    """Of the interface that has the connection's own address."""
    import fcntl
    import struct

    if made.family != socket.AF_INET:
        return 0
    own = made.getsockname()[0]
    for _, name in socket.if_nameindex():
        request = struct.pack("16s24x", name.encode()[:15])
        try:
            address = fcntl.ioctl(made.fileno(), 0x8915, request)[20:24]  # SIOCGIFADDR
            if socket.inet_ntoa(address) == own:
                return int(struct.unpack_from("i", fcntl.ioctl(made.fileno(), 0x8921, request), 16)[0])  # SIOCGIFMTU
        except OSError:
            continue
    return 0


def _ask_over(made: socket.socket, question: Question, seen: Upstream) -> Upstream:
    stream: Any = made
    try:
        target = question.target
        if question.scheme == "https":
            if question.via:
                _tunnel(made, question)
            context = ssl.create_default_context(cafile=None)
            if question.ca:
                context.load_verify_locations(question.ca)
            stream = context.wrap_socket(made, server_hostname=question.host)
        elif question.via:
            target = f"http://{question.host}:{question.port}{target}"
    except (ssl.SSLError, OSError) as fault:
        return replace(seen, stage="tls", fault=_text(fault))
    for method in ("HEAD", "GET"):
        try:
            answer = _request(stream, method, target, question.name)
        except (OSError, http.client.HTTPException) as fault:
            return replace(seen, stage="answer", fault=_text(fault))
        if answer.status not in (405, 501):
            return replace(seen, answer=replace(answer, path=question.target))
    return seen


def _tunnel(made: socket.socket, question: Question) -> None:
    authority = f"{question.host}:{question.port}"
    made.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    response = http.client.HTTPResponse(made, method="CONNECT")
    response.begin()
    if response.status != 200:
        raise OSError(f"the parent proxy answers {response.status} to CONNECT")


def _request(stream: Any, method: str, target: str, host: str) -> Answer:
    asked_s = time.time()
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "User-Agent: accelerator-doctor", "Accept: */*"]
    if method == "GET":
        lines.append("Range: bytes=0-0")
    stream.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    response = http.client.HTTPResponse(stream, method=method)
    response.begin()
    fields = tuple((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.getheaders())
    return Answer(target, response.status, fields, asked_s, time.time())


def _text(fault: Exception) -> str:
    if isinstance(fault, ssl.SSLCertVerificationError):
        return fault.verify_message.rstrip(".")
    if isinstance(fault, TimeoutError):
        return f"nothing within {TIMEOUT_S:.0f} s"
    if isinstance(fault, ssl.SSLError):
        return (fault.reason or str(fault)).lower().replace("_", " ")
    text = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
    return (text or "the connection was closed").lower()
