"""The process that receives one SRT or RIST input and gives its packets to the daemon, each behind an RTP header.

A process of its own, as these libraries are C and parse what strangers send: it can open no file, and ends with the
daemon. Run as a file (-I -S) by io/intakes.py: nothing but the standard library, libsrt and librist may come in here
(docs/decisions/0205).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from ctypes import (
    POINTER,
    byref,
    c_char,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from ipaddress import ip_address, ip_network
from typing import Any

_LIBRARIES = {
    "srt": ("libsrt-gnutls.so.1.5", "libsrt-openssl.so.1.5", "libsrt.so.1.5"),
    "rist": ("librist.so.4",),
}
_MEMORY_BYTES = 512 << 20
_READ_WITHIN_MS = 500
_STATS_EVERY_S = 2.0
# Without a packet for so long, a RIST sender counts as gone: its library tells of peers, not of media.
_SILENT_S = 2.0
# One whose packets could be no stream, or who sends none, makes place for another after this.
_IDLE_S = 1.0
_RETRY_S = (0.25, 0.5, 1.0, 2.0, 4.0)
_PACKET_BYTES = 2048
_MP2T = 33

# <sys/prctl.h>, <linux/landlock.h>
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446


class Fatal(Exception):
    """Said to the daemon; the process ends."""


def report(**fields: Any) -> None:
    with contextlib.suppress(BlockingIOError):  # the daemon is behind: packets matter more
        os.write(1, json.dumps(fields, separators=(",", ":")).encode() + b"\n")


class Refusals:
    """Callers that were turned away, counted: a stranger may call a hundred times a second."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._told_s = 0.0
        self._is_told = True

    def add(self, reason: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._is_told = False
        self.tell()

    def tell(self) -> None:
        """What `add` had no time for."""
        if not self._is_told and time.monotonic() - self._told_s >= _STATS_EVERY_S:
            self._told_s, self._is_told = time.monotonic(), True
            report(refused=self._counts)


# --- what this process may --------------------------------------------------------------------------------------------


def bind_to_parent(libc: ctypes.CDLL, parent: int) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        raise SystemExit(0)


def confine(libc: ctypes.CDLL) -> str:
    """Takes away what is not needed: core files, memory without end, every file, TCP. What is open stays. Returns what
    the kernel didn't do."""
    with contextlib.suppress(OSError, ValueError):  # lower ones hold already
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return "no landlock"
    # Every right that this version knows, and no rule gives one back: ABI 2 has REFER, 3 TRUNCATE, 5 IOCTL_DEV.
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    rules = struct.pack("=QQ", files, 3 if version >= 4 else 0)[: 16 if version >= 4 else 8]
    made = libc.syscall(_LANDLOCK_CREATE, rules, len(rules), 0)
    if made < 0 or libc.syscall(_LANDLOCK_RESTRICT, made, 0):
        return "landlock refused"
    os.close(made)
    return ""


def load(scheme: str) -> ctypes.CDLL:
    for name in _LIBRARIES[scheme]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Fatal(f"{_LIBRARIES[scheme][0]} is not installed")


# --- to the daemon ----------------------------------------------------------------------------------------------------


class Feed:
    """The socket that the relay reads from. Numbers are the protocol's own, so that what it lost is seen."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._source = 0

    def begin(self) -> None:
        """Another connection: RTP's way to say so is another SSRC (RFC 3550 section 8)."""
        self._source = int.from_bytes(os.urandom(4), "big")

    def give(self, payload: bytes, sequence: int, timestamp: int) -> None:
        head = struct.pack("!BBHII", 0x80, _MP2T, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, self._source)
        try:
            self._socket.send(head + payload)
        except OSError as fault:
            # The daemon reads behind: its socket counts what it drops.
            if fault.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ECONNREFUSED):
                raise


def could_be_media(payload: bytes) -> bool:
    """Transport packets, or RTP (RFC 3550 section 5.1)."""
    if payload[:1] == b"\x47":
        return len(payload) % 188 == 0
    return len(payload) >= 12 and payload[0] >> 6 == 2


class Holder:
    """Who has the input: the first caller, for as long as it sends what could be a stream, or nobody else is there."""

    def __init__(self) -> None:
        self._useful_s = time.monotonic()

    def began(self) -> None:
        self._useful_s = time.monotonic()

    def note(self, payload: bytes) -> None:
        if could_be_media(payload):
            self._useful_s = time.monotonic()

    @property
    def is_idle(self) -> bool:
        return time.monotonic() - self._useful_s > _IDLE_S


def is_admitted(address: str, networks: Sequence[Any]) -> bool:
    ip = ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return not networks or any(ip.version == each.version and ip in each for each in networks)


def socket_address(host: str, port: int) -> bytes:
    """struct sockaddr_in, sockaddr_in6."""
    if ":" in host:
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + ip_address(host).packed + bytes(4)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + ip_address(host).packed + bytes(8)


# --- SRT --------------------------------------------------------------------------------------------------------------

# <srt/srt.h>, version 1.5: SRT_SOCKOPT, SRT_ERRNO, SRT_EPOLL_OPT
_SRT_RCVTIMEO, _SRT_PASSPHRASE, _SRT_CONNTIMEO = 14, 26, 36
_SRT_RCVLATENCY, _SRT_STREAMID, _SRT_IPV6ONLY, _SRT_PEERIDLETIMEO = 43, 46, 54, 55
_SRT_ETIMEOUT = 6003
_SRT_EPOLL_IN = 1
_BACKLOG = 4
_LOG_ERR = 3


class _MsgCtrl(ctypes.Structure):
    _fields_ = [
        ("flags", c_int), ("msgttl", c_int), ("inorder", c_int), ("boundary", c_int), ("srctime", c_int64),
        ("pktseq", c_int32), ("msgno", c_int32), ("grpdata", c_void_p), ("grpdata_size", c_size_t),
    ]  # fmt: skip


class Srt:
    """One connection at a time. Who calls meanwhile waits in the library's backlog, until the one that is there ends or
    is idle: a stranger who connects and sends nothing would hold the input for ever."""

    def __init__(self, lib: ctypes.CDLL, config: dict[str, Any], feed: Feed) -> None:
        self._lib, self._config, self._feed = lib, config, feed
        self._networks = [ip_network(each) for each in config["sources"]]
        self._refusals = Refusals()
        self._holder = Holder()
        self._waiting = -1  # an epoll of the library's, on the listener
        lib.srt_getlasterror_str.restype = c_char_p
        lib.srt_rejectreason_str.restype = c_char_p
        lib.srt_startup()
        lib.srt_setloglevel(_LOG_ERR)

    def run(self) -> None:
        if self._config["mode"] == "listener":
            self._listen()
        else:
            self._call()

    def _socket(self) -> int:
        made = self._lib.srt_create_socket()
        config = self._config
        self._set(made, _SRT_RCVLATENCY, config["latency_ms"])
        self._set(made, _SRT_RCVTIMEO, _READ_WITHIN_MS)
        self._set(made, _SRT_CONNTIMEO, 3000)
        self._set(made, _SRT_PEERIDLETIMEO, 3000)
        if ":" in config["host"]:
            self._set(made, _SRT_IPV6ONLY, 1)
        if config["passphrase"]:
            self._set(made, _SRT_PASSPHRASE, config["passphrase"])
        if config["stream_id"] and config["mode"] == "caller":
            self._set(made, _SRT_STREAMID, config["stream_id"])
        return int(made)

    def _set(self, made: int, option: int, value: int | str) -> None:
        data = value.encode() if isinstance(value, str) else struct.pack("=i", value)
        if self._lib.srt_setsockflag(made, option, data, len(data)):
            raise Fatal(f"option {option}: {self._fault()}")

    def _fault(self) -> str:
        return bytes(self._lib.srt_getlasterror_str()).decode(errors="replace")

    def _address(self) -> tuple[bytes, int]:
        packed = socket_address(self._config["host"], self._config["port"])
        return packed, len(packed)

    def _call(self) -> None:
        n_failed = 0
        while True:
            made = self._socket()
            if self._lib.srt_connect(made, *self._address()) < 0:
                reason = self._lib.srt_getrejectreason(made)
                why = self._fault()
                if reason > 0:
                    why = f"{why}: {bytes(self._lib.srt_rejectreason_str(reason)).decode(errors='replace')}"
                report(state="waiting", why=why)
            else:
                begun_s = time.monotonic()
                self._receive(made)
                n_failed = 0 if time.monotonic() - begun_s > 10 else n_failed
            self._lib.srt_close(made)
            time.sleep(_RETRY_S[min(n_failed, len(_RETRY_S) - 1)])
            n_failed += 1

    def _listen(self) -> None:
        listening = self._socket()
        tries = 0
        while self._lib.srt_bind(listening, *self._address()) < 0:
            # Whom it replaces may need a moment to end.
            tries += 1
            if tries > 20:
                raise Fatal(f"can't listen: {self._fault()}")
            time.sleep(0.1)
        if self._lib.srt_listen(listening, _BACKLOG) < 0:
            raise Fatal(f"can't listen: {self._fault()}")
        self._waiting = self._lib.srt_epoll_create()
        events = c_int(_SRT_EPOLL_IN)
        if self._waiting < 0 or self._lib.srt_epoll_add_usock(self._waiting, listening, byref(events)) < 0:
            raise Fatal(f"can't listen: {self._fault()}")
        report(state="waiting", why="listens; nobody has called")
        while True:
            name = ctypes.create_string_buffer(128)
            size = c_int(len(name))
            made = self._lib.srt_accept(listening, name, byref(size))
            if made < 0:
                raise Fatal(f"can't accept: {self._fault()}")
            refused = self._refusal(made, name.raw)
            if refused:
                self._refusals.add(refused)
            else:
                self._receive(made)
            self._lib.srt_close(made)

    def _refusal(self, made: int, name: bytes) -> str:
        is_v6 = struct.unpack_from("=H", name)[0] == socket.AF_INET6
        address = socket.inet_ntop(socket.AF_INET6, name[8:24]) if is_v6 else socket.inet_ntoa(name[4:8])
        if not is_admitted(address, self._networks):
            return "source"
        if self._config["stream_id"]:
            said = ctypes.create_string_buffer(513)
            size = c_int(len(said))
            self._lib.srt_getsockflag(made, _SRT_STREAMID, said, byref(size))
            if said.raw[: max(0, size.value)] != self._config["stream_id"].encode():
                return "stream-id"
        return ""

    def _is_another_waiting(self) -> bool:
        event = ctypes.create_string_buffer(8)  # SRT_EPOLL_EVENT
        return self._waiting >= 0 and self._lib.srt_epoll_uwait(self._waiting, event, 1, c_int64(0)) > 0

    def _receive(self, made: int) -> None:
        self._feed.begin()
        self._holder.began()
        report(state="connected")
        data = ctypes.create_string_buffer(_PACKET_BYTES)
        said = _MsgCtrl()
        told_s = 0.0
        receive, view = self._lib.srt_recvmsg2, memoryview(data)
        while True:
            self._lib.srt_msgctrl_init(byref(said))
            size = receive(made, data, _PACKET_BYTES, byref(said))
            if size > 0:
                payload = bytes(view[:size])
                self._holder.note(payload)
                self._feed.give(payload, said.pktseq, said.srctime * 9 // 100)
            elif self._lib.srt_getlasterror(None) != _SRT_ETIMEOUT:
                report(state="waiting", why=self._fault())
                return
            if self._holder.is_idle and self._is_another_waiting():
                self._refusals.add("idle")
                report(state="waiting", why="the caller sent no stream, and another one waited")
                return
            if time.monotonic() - told_s >= _STATS_EVERY_S:
                told_s = time.monotonic()
                self._tell(made)
                self._refusals.tell()

    def _tell(self, made: int) -> None:
        stats = ctypes.create_string_buffer(2048)  # SRT_TRACEBSTATS, with room for what versions add at its end
        if self._lib.srt_bstats(made, stats, 0) == 0:
            packets, missed = struct.unpack_from("=q", stats, 16)[0], struct.unpack_from("=i", stats, 28)[0]
            dropped, undecrypted = struct.unpack_from("=ii", stats, 68)
            report(stats={"packets": packets, "missed": missed, "given_up": dropped, "undecrypted": undecrypted})


# --- RIST -------------------------------------------------------------------------------------------------------------


class _PeerConfig(ctypes.Structure):
    """struct rist_peer_config of librist 4, RIST_PEER_CONFIG_VERSION 0."""

    _fields_ = [
        ("version", c_int), ("address_family", c_int), ("initiate_conn", c_int), ("address", c_char * 256),
        ("miface", c_char * 128), ("physical_port", c_uint16), ("virt_dst_port", c_uint16), ("recovery_mode", c_int),
        ("recovery_maxbitrate", c_uint32), ("recovery_maxbitrate_return", c_uint32), ("recovery_length_min", c_uint32),
        ("recovery_length_max", c_uint32), ("recovery_reorder_buffer", c_uint32), ("recovery_rtt_min", c_uint32),
        ("recovery_rtt_max", c_uint32), ("weight", c_uint32), ("secret", c_char * 128), ("key_size", c_int),
        ("key_rotation", c_uint32), ("compression", c_int), ("cname", c_char * 128), ("congestion_control_mode", c_int),
        ("min_retries", c_uint32), ("max_retries", c_uint32), ("session_timeout", c_uint32),
        ("keepalive_interval", c_uint32), ("timing_mode", c_uint32), ("srp_username", c_char * 256),
        ("srp_password", c_char * 256), ("room", c_char * 512),
    ]  # fmt: skip


class _Block(ctypes.Structure):
    _fields_ = [
        ("payload", c_void_p), ("payload_len", c_size_t), ("ts_ntp", c_uint64), ("virt_src_port", c_uint16),
        ("virt_dst_port", c_uint16), ("peer", c_void_p), ("flow_id", c_uint32), ("seq", c_uint64), ("flags", c_uint32),
        ("ref", c_void_p),
    ]  # fmt: skip


_Connect = ctypes.CFUNCTYPE(c_int, c_void_p, c_char_p, c_uint16, c_char_p, c_uint16, c_void_p)
_Disconnect = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)


class Rist:
    """The library takes any number of senders at once: packets of one flow are given on, and of another one only when
    that is idle."""

    def __init__(self, lib: ctypes.CDLL, config: dict[str, Any], feed: Feed, libc: ctypes.CDLL) -> None:
        self._lib, self._config, self._feed, self._libc = lib, config, feed, libc
        self._networks = [ip_network(each) for each in config["sources"]]
        self._refusals = Refusals()
        self._holder = Holder()
        self._keep: list[Any] = []

    def run(self) -> None:
        lib, config = self._lib, self._config
        context, logging = c_void_p(), c_void_p()
        stderr = c_void_p.in_dll(self._libc, "stderr")
        self._check(lib.rist_logging_set(byref(logging), _LOG_ERR, None, None, None, stderr), "logging")
        profile = {"simple": 0, "main": 1}[config["profile"]]
        self._check(lib.rist_receiver_create(byref(context), profile, logging), "receiver")
        if self._networks and config["mode"] == "listener":
            self._keep = [_Connect(self._admit), _Disconnect(lambda *_: 0)]
            self._check(lib.rist_auth_handler_set(context, *self._keep, None), "sources")
        peer_config, peer = _PeerConfig(), c_void_p()
        self._check(lib.rist_peer_config_defaults_set(byref(peer_config)), "defaults")
        host = config["host"]
        peer_config.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        peer_config.initiate_conn = int(config["mode"] == "caller")
        peer_config.address = host.encode()
        peer_config.physical_port = config["port"]
        peer_config.recovery_length_min = peer_config.recovery_length_max = config["latency_ms"]
        # Asked for again at most so often as the latency has room for.
        peer_config.recovery_rtt_min = min(50, max(5, config["latency_ms"] // 8))
        peer_config.recovery_reorder_buffer = min(25, config["latency_ms"] // 4)
        if config["passphrase"]:
            peer_config.secret = config["passphrase"].encode()
            peer_config.key_size = 128
        self._check(lib.rist_peer_create(context, byref(peer), byref(peer_config)), "can't open the port")
        self._check(lib.rist_start(context), "start")
        report(state="waiting", why="nothing has come yet")
        self._receive(context)

    def _check(self, said: int, what: str) -> None:
        if said:
            raise Fatal(f"librist: {what} ({said})")

    def _admit(self, _arg: Any, host: bytes, *_: Any) -> int:
        try:
            if is_admitted(host.decode().removeprefix("[").removesuffix("]"), self._networks):
                return 0
        except ValueError:
            pass
        self._refusals.add("source")
        return -1

    def _receive(self, context: c_void_p) -> None:
        read, free, give = self._lib.rist_receiver_data_read2, self._lib.rist_receiver_data_block_free2, self._feed.give
        block = POINTER(_Block)()
        last_s, flow, n_packets, told_s = 0.0, -1, 0, 0.0
        second = -1
        while True:
            said = read(context, byref(block), _READ_WITHIN_MS)
            now_s = time.monotonic()
            if said > 0 and block:
                each = block.contents
                payload = ctypes.string_at(each.payload, each.payload_len)
                if last_s and each.flow_id != flow and not self._holder.is_idle:
                    if each.flow_id != second:  # counted once, not by packet
                        second = each.flow_id
                        self._refusals.add("second")
                    free(byref(block))
                    continue
                if last_s == 0.0 or each.flow_id != flow:
                    if last_s:
                        self._refusals.add("idle")
                    self._feed.begin()
                    self._holder.began()
                    second = -1
                    report(state="connected")
                last_s, flow = now_s, each.flow_id
                n_packets += 1
                self._holder.note(payload)
                give(payload, each.seq, each.ts_ntp * 90_000 >> 32)
                free(byref(block))
            elif said < 0:
                raise Fatal(f"librist: reading ({said})")
            elif last_s and now_s - last_s > _SILENT_S:
                last_s = 0.0
                report(state="waiting", why="nothing comes any more")
            if n_packets and now_s - told_s >= _STATS_EVERY_S:
                told_s = now_s
                report(stats={"packets": n_packets})
                self._refusals.tell()


# --- life -------------------------------------------------------------------------------------------------------------


def end_with_input() -> None:
    """The daemon holds the other end of our standard input: its end is ours."""
    while True:
        try:
            if not os.read(0, 4096):
                break
        except OSError:
            break
    os._exit(0)


def main(read: Callable[[int, int], bytes] = os.read) -> int:
    line = b""
    while not line.endswith(b"\n"):
        more = read(0, 65_536)
        if not more:
            return 0
        line += more
    config = json.loads(line)
    for fd in (1, 2):  # what libraries log must never hold packets up
        os.set_blocking(fd, False)
    libc = ctypes.CDLL(None, use_errno=True)
    bind_to_parent(libc, config["parent"])
    try:
        lib = load(config["scheme"])
        feed = Feed(config["feed"])
        if said := confine(libc):
            report(unconfined=said)
        threading.Thread(target=end_with_input, daemon=True).start()
        if config["scheme"] == "srt":
            Srt(lib, config, feed).run()
        else:
            Rist(lib, config, feed, libc).run()
    except Fatal as fault:
        report(state="failed", why=str(fault))
        return 1
    return 0


if __name__ == "__main__":
    # No traceback: it would be the journal's, line by line, and say no more to who reads it there.
    sys.excepthook = lambda kind, fault, _: os.write(2, f"{kind.__name__}: {fault}\n".encode()[:500]) and None
    sys.exit(main())
