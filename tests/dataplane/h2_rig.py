"""A viewer who speaks HTTP/2, for tests of planes: hyper-h2 keeps its state, and raw frames can go beside it. No test
lives here."""

from __future__ import annotations

from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings
from plane_rig import Rig, Viewer

HEADERS, GOAWAY = 1, 7
CLEARTEXT = 2  # layout.pxd: HTTP2_CLEARTEXT
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 1, 2, 7, 8, 11


def raw_frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One frame, whatever it says (RFC 9113 section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@dataclass
class Answer:
    """What has come of one stream."""

    heads: list[list[tuple[str, str]]] = field(default_factory=list)
    body: bytes = b""
    is_whole: bool = False
    reset: int | None = None

    @property
    def is_open(self) -> bool:
        return not self.is_whole and self.reset is None

    @property
    def fields(self) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self.heads[-1] if not name.startswith(":")]

    @property
    def status(self) -> int:
        return int(self[":status"])

    def __getitem__(self, name: str) -> str:
        values = [value for key, value in self.heads[-1] if key == name]
        assert len(values) == 1, f"{name}: {values}"
        return values[0]

    def has(self, name: str) -> bool:
        return any(key == name for key, _ in self.heads[-1])


class H2Viewer(Viewer):
    """One connection with many streams. `takes`: bytes are acknowledged, so that windows stay open."""

    def __init__(self, rig: Rig, *, takes: bool = True, window: int = 65535, receive_bytes: int = 0) -> None:
        super().__init__(receive_bytes)
        self.connect(rig.address)
        rig.viewers.append(self)
        if rig.secure is not None:
            self.socket = rig.secure(self.socket)
        elif rig.context is not None:
            rig.context.set_alpn_protocols(["h2"])
            self.socket = rig.context.wrap_socket(self.socket, server_hostname="a", suppress_ragged_eofs=False)
        self.takes = takes
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False,
            normalize_outbound_headers=False, validate_inbound_headers=True,
        )  # fmt: skip
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        if window != 65535:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.answers: dict[int, Answer] = {}
        self.order: list[tuple[int, int]] = []  # (stream, bytes) of each DATA frame, as they came
        self.goaways: list[tuple[int, int]] = []  # (last stream, code)
        self.taken_back: set[int] = set()  # streams that we have reset
        self.is_settled = False
        self.frames = b""  # not whole yet
        self.flush()
        while not self.is_settled:  # our acknowledgement may not come between a test's own frames
            assert self.step()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.send(data)

    def raw(self, *frames: bytes) -> None:
        self.send(b"".join(frames))

    def request(
        self, path: str = "/x", *fields: tuple[str, str], method: str = "GET", end: bool = True, host: str = "a",
        priority: str = "",
    ) -> int:  # fmt: skip
        """Sends a request's head. Returns its stream."""
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", host), (":path", path), *fields]
        if priority:
            head.append(("priority", priority))
        self.headers(stream, head, end)
        return stream

    def headers(self, stream: int, head: list[tuple[str, str]], end: bool = True) -> None:
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, head, end_stream=end)
        self.flush()

    def body(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """Sends all of it, as the windows allow, or until the stream is over for the other side."""
        while data:
            if self.answers[stream].reset is not None:
                return
            n = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(data))
            if n == 0:
                assert self.step(), "ended"
                continue
            self.h2.send_data(stream, data[:n])
            data = data[n:]
            self.flush()
        if end:
            self.h2.end_stream(stream)
            self.flush()

    def step(self) -> bool:
        """Takes what comes next. False: the end."""
        piece = self.socket.recv(1 << 18)
        if not piece:
            return False
        self.frames += piece
        while len(self.frames) >= 9:
            n = 9 + int.from_bytes(self.frames[:3], "big")
            if len(self.frames) < n:
                break
            frame, self.frames = self.frames[:n], self.frames[n:]
            if frame[3] == GOAWAY:  # hyper-h2 would take nothing more after the first one
                self.goaways.append((int.from_bytes(frame[9:13], "big"), int.from_bytes(frame[13:17], "big")))
                continue
            if frame[3] == HEADERS and int.from_bytes(frame[5:9], "big") in self.taken_back:
                self.h2.decoder.decode(frame[9:])  # hyper-h2 takes a 103 that was on its way for a fault
                continue
            for event in self.h2.receive_data(frame):
                self.on(event)
        self.flush()
        return True

    def on(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived | h2.events.InformationalResponseReceived):
            self.answers[event.stream_id].heads.append([(str(a), str(b)) for a, b in event.headers])
        elif isinstance(event, h2.events.DataReceived):
            self.answers[event.stream_id].body += event.data
            self.order.append((event.stream_id, len(event.data)))
            if self.takes and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self.is_settled = True
        elif isinstance(event, h2.events.StreamEnded):
            self.answers[event.stream_id].is_whole = True
        elif isinstance(event, h2.events.StreamReset) and event.stream_id in self.answers:
            self.answers[event.stream_id].reset = int(event.error_code or 0)

    def until_over(self, *streams: int) -> list[Answer]:
        """The answers of these streams, each whole or reset."""
        answers = [self.answers[stream] for stream in streams]
        while any(answer.is_open for answer in answers):
            assert self.step(), f"ended: {self.goaways}"
        return answers

    def fetch(self, path: str = "/x", *fields: tuple[str, str], method: str = "GET", host: str = "a") -> Answer:
        return self.until_over(self.request(path, *fields, method=method, host=host))[0]

    def ending(self) -> int:
        """Reads to the end of the connection. Returns the last GOAWAY's code."""
        try:
            while self.step():
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert self.goaways, "closed without a word"
        return self.goaways[-1][1]
