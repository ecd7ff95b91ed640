"""What relays tell players and operators of themselves, against what they really send."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import netns
import pytest
from relay_box import Receiver, RelayBox
from running_box import wait_for

from accelerator.protocols import sap, sdp
from accelerator.services.relays.announce import Session, describe
from accelerator.services.relays.flow import NOT_OURS

REASON = netns.why_not()
NULL_PACKET = b"\x47\x1f\xff\x10".ljust(188, b"\xff")


@pytest.mark.parametrize(
    ("is_rtp", "payload_type", "carries_ts", "line", "rtpmap"),
    [
        (True, -1, True, ("video", "RTP/AVP", ("33",)), None),
        (True, 33, True, ("video", "RTP/AVP", ("33",)), None),
        (True, 96, True, ("video", "RTP/AVP", ("96",)), "96 MP2T/90000"),
        (True, 0, False, ("audio", "RTP/AVP", ("0",)), None),
        (True, 34, False, ("video", "RTP/AVP", ("34",)), None),
        (False, -1, True, ("video", "udp", ("33",)), None),
    ],
)
def test_a_stream_is_described_as_what_it_is(
    is_rtp: bool, payload_type: int, carries_ts: bool, line: tuple[str, str, tuple[str, ...]], rtpmap: str | None
) -> None:
    session = Session("Große Halle", "239.1.1.1", 5004, is_rtp, payload_type, 1, "eth0", "10.0.0.1", carries_ts)
    assert session.can_be_described
    description = sdp.read(describe(session, 1))
    (media,) = description.media
    assert (media.kind, media.protocol, media.formats) == line
    assert dict(media.attributes).get("rtpmap") == rtpmap
    assert description.name == "Große Halle"


@contextmanager
def sending(namespace: netns.Namespace, packets: dict[tuple[str, int], bytes]) -> Iterator[None]:
    """Each of `packets` again and again, with rising numbers."""
    stopped, made = threading.Event(), netns.sender(namespace, "eth0")

    def run() -> None:
        number = 0
        while not stopped.wait(0.01):
            for to, packet in packets.items():
                made.sendto(packet[:2] + (number & 0xFFFF).to_bytes(2, "big") + packet[4:], to)
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        made.close()


@pytest.mark.netns
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_what_is_announced_is_what_is_sent_and_a_senders_address_is_told(tmp_path: Path) -> None:
    """A stream of another payload type was announced as MPEG-TS, type 33; and an input that names its sender's address,
    where ours has to stand, waited without a word."""
    head = bytes([0x80, 0]) + bytes(6) + b"same"
    with netns.Topology() as topology:
        source, namespace, (screens,) = topology.proxy(1)
        relays = {
            name: {"from": [f"rtp://239.1.1.{number}:5004"], "interface": "wan", "announce": name,
                   "to": [{"group": f"239.255.1.{number}:5004", "interface": "lan0"}]}
            for number, name in enumerate(("Transport", "Unknown"), 1)
        }  # fmt: skip
        relays["wrong"] = {"from": ["rtp://10.0.0.2:5004"], "to": [{"unicast": ["10.1.0.2:6001"]}]}
        relays["right"] = {"from": ["rtp://10.0.0.1:5004"], "to": [{"unicast": ["10.1.0.2:6002"]}]}
        packets = {
            ("239.1.1.1", 5004): head[:1] + b"\x60" + head[2:] + 7 * NULL_PACKET,
            ("239.1.1.2", 5004): head[:1] + b"\x61" + head[2:] + b"a codec's own",
        }
        with (
            Receiver(netns.join(screens, "eth0", "239.255.255.255", sap.PORT)) as heard,
            RelayBox(namespace, tmp_path, **relays) as box,
        ):

            def announced() -> dict[str, tuple[str, ...]]:
                known: dict[str, tuple[str, ...]] = {}
                for each in map(sap.read, list(heard.datagrams)):
                    if each.is_deletion:  # has the first two lines only: by its hash
                        known = {name: one for name, one in known.items() if one[0] != str(each.hash_)}
                        continue
                    description = sdp.read(each.payload)
                    said = (*description.media[0].formats, str(dict(description.media[0].attributes).get("rtpmap")))
                    known[description.name] = (str(each.hash_), *said)
                return {name: one[1:] for name, one in known.items()}

            with sending(source, packets):
                wait_for(lambda: announced() == {"Transport": ("96", "96 MP2T/90000")}, seconds=30)
            wrong = wait_for(lambda: box.relay("wrong")["troubles"], seconds=30)
            assert wrong == [f"10.0.0.2: {NOT_OURS}"]
            assert box.relay("right")["troubles"] == []
            # The address may come later.
            namespace.ip("addr", "add", "10.0.0.2/32", "dev", "lo")
            wait_for(lambda: not box.relay("wrong")["troubles"], seconds=30)


@pytest.mark.netns
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_an_interface_that_is_down_is_told_and_that_it_is_up_again(tmp_path: Path) -> None:
    """Packets were refused one by one, and nothing said why."""
    with netns.Topology() as topology:
        _, namespace, _ = topology.proxy(1)
        hall = {"from": ["rtp://239.1.1.1:5004"], "interface": "wan",
                "to": [{"group": "239.2.1.1:5004", "interface": "lan0"}]}  # fmt: skip
        with RelayBox(namespace, tmp_path, hall=hall) as box:
            wait_for(lambda: box.relay()["joined"], seconds=30)
            for link, told in (("lan0", "output 0: interface lan0"), ("wan", "239.1.1.1: interface wan")):
                namespace.ip("link", "set", link, "down")
                wait_for(lambda told=told: box.relay()["troubles"] == [f"{told} is down"], seconds=30)
                namespace.ip("link", "set", link, "up")
                wait_for(lambda: not box.relay()["troubles"], seconds=30)
            assert not box.events("relay-waiting"), "shown, and no event: a new interface is down for a moment too"
