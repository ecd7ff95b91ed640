"""Relays by policy in a running box, in namespaces: real senders, real receivers, a reload under load, a lost input."""

from __future__ import annotations

import itertools
import resource
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from relay_box import HALL, Places, Receiver, RelayBox, Sender, gaps, groups, is_whole, policy_of, unicast
from running_box import RunningBox, merge, wait_for
from test_upgrade import UpgradedBox

from accelerator.policy import check_texts, compile_policy
from accelerator.policy.diff import RELAY_INPUT_KEYS
from accelerator.protocols import sap, sdp
from accelerator.services.relays.flow import input_key
from ext.relay_wire import TsMeter

REASON = netns.why_not()
pytestmark = [pytest.mark.netns, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.fixture
def places() -> Iterator[tuple[netns.Namespace, netns.Namespace, list[netns.Namespace]]]:
    with netns.Topology() as topology:
        yield topology.proxy(2)


def test_a_channel_reaches_a_group_and_single_receivers(places: Places, tmp_path: Path) -> None:
    """ffmpeg's RTP in by a source-specific group; TS out of a group, RTP to single receivers: not a packet missing."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    source, namespace, (screens, desks) = places
    hall = {
        **HALL,
        "to": [
            {
                "group": "239.2.1.1:5004", "interface": "lan0", "ttl": 3, "dscp": "AF41", "rtp": "strip",
                "source_port": 7004,
            },
            {"unicast": ["10.1.1.2:6000"], "rtp": "restamp"},
        ],
    }  # fmt: skip
    with RelayBox(namespace, tmp_path, hall=hall) as box:
        joined = netns.join(screens, "eth0", "239.2.1.1", 5004)
        joined.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
        joined.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS
        with Receiver(unicast(desks, "10.1.1.2", 6000)) as desk:
            channel = (
                "ffmpeg -v error -re -f lavfi -i testsrc2=s=320x240:r=25 -c:v libx264 -preset ultrafast -g 25 -t 4 "
                "-f rtp_mpegts rtp://239.1.1.1:5004?ttl=4&localaddr=10.0.0.2"
            )
            done = source.popen(*channel.split(), stderr=subprocess.PIPE)
            data, ancillary, _, sender = joined.recvmsg(2000, 200)
            meter = TsMeter()
            meter.add(data)
            n_screens = 1
            done.communicate(timeout=30)
            joined.settimeout(0.5)
            try:
                while True:
                    meter.add(joined.recv(2000))
                    n_screens += 1
            except TimeoutError:
                pass
            known = box.relay()
        joined.close()
    values = {kind: value[0] for _, kind, value in ancillary}
    assert (values[socket.IP_TTL], values[socket.IP_TOS], sender) == (3, 34 << 2, ("10.1.0.1", 7004))
    counters = known["counters"]
    assert known["format"] == "rtp"
    assert counters["packets"] == n_screens == len(desk.datagrams) > 50
    assert counters["lost"] == counters["ts_continuity"] == 0
    assert (meter.known()["continuity_errors"], meter.known()["damaged"]) == (0, 0)
    stamped = [struct.unpack_from("!H", each, 2)[0] for each in desk.datagrams]
    assert all((b - a) & 0xFFFF == 1 for a, b in itertools.pairwise(stamped))
    assert len(set(desk.sources)) == 1
    assert known["legs"][0]["joined"] is True
    assert [each["receivers"] for each in known["to"]] == [1, 1]


def test_groups_are_joined_while_somebody_receives(places: Places, tmp_path: Path) -> None:
    source, namespace, (screens, _) = places
    hall = {**HALL, "linger": "500ms", "to": [{"unicast": []}]}
    with RelayBox(namespace, tmp_path, hall=hall) as box, Sender(source, [("239.1.1.1", 5004)], 200):
        assert "239.1.1.1" not in groups(namespace, "wan")
        assert box.relay()["state"] == "idle"
        assert box.accelctl("relay", "ls").returncode == 0
        with Receiver(unicast(screens, "10.1.0.2", 6000)) as screen:
            assert box.control("relay add-receiver", name="hall", receivers="10.1.0.2:6000") == {
                "added": 1,
                "receivers": 1,
            }
            assert "239.1.1.1" in groups(namespace, "wan")
            wait_for(lambda: len(screen.datagrams) > 100)
            assert box.control("relay add-receiver", name="hall", receivers="10.1.0.2:6000")["added"] == 0
            assert wait_for(lambda: box.relay()["state"] == "live")
            removed = box.control("relay remove-receiver", name="hall", receivers="10.1.0.2:6000")
            assert removed == {"removed": 1, "receivers": 0}
            n_then = len(screen.datagrams)
            assert "239.1.1.1" in groups(namespace, "wan"), "it lingers"
            wait_for(lambda: "239.1.1.1" not in groups(namespace, "wan"))
            assert len(screen.datagrams) <= n_then + 1
            assert is_whole(screen.numbers, 100)
        wait_for(lambda: box.relay()["state"] == "idle")
    assert "10.1.0.2" not in box.output, "a receiver's address is in no log"
    assert b"10.1.0.2" not in b"".join(each.read_bytes() for each in (box.state / "logs").iterdir())


def test_receivers_and_outputs_change_without_a_gap_for_the_others(places: Places, tmp_path: Path) -> None:
    """Joins, leaves and reloads under load: who stays has each packet once."""
    source, namespace, (screens, desks) = places
    outputs: list[dict[str, Any]] = [
        {"group": "239.2.1.1:5004", "interface": "lan0"}, {"unicast": ["10.1.1.2:6000"]},
    ]  # fmt: skip
    with (
        RelayBox(namespace, tmp_path, hall={**HALL, "to": outputs}) as box,
        Receiver(netns.join(screens, "eth0", "239.2.1.1", 5004)) as screen,
        Receiver(unicast(desks, "10.1.1.2", 6000)) as desk,
        Sender(source, [("239.1.1.1", 5004)], 3000) as sender,
    ):
        wait_for(lambda: screen.datagrams and desk.datagrams)
        others = ",".join(f"10.1.1.2:{port}" for port in range(7000, 7200))
        for number in range(50):
            box.control("relay add-receiver", name="hall", receivers=f"{others},10.1.1.2:{8000 + number}")
            box.control("relay remove-receiver", name="hall", receivers=others)
        assert box.relay()["subscribed"] == 50
        outputs.append({"unicast": ["10.1.0.2:9000"], "dscp": "EF", "hold": "0ms"})
        assert "taken over" in box.reload({"relays": {"hall": {"to": outputs}}})
        wait_for(lambda: box.relay()["to"][-1]["packets"] > 100)
        outputs[2] = {"group": "239.2.1.9:5004", "interface": "lan1", "hold": "20ms"}
        assert "taken over" in box.reload({"relays": {"hall": {"to": outputs}}})
        wait_for(lambda: box.relay()["to"][-1]["packets"] > 100)
        n_sent = sender.stop()
        wait_for(lambda: screen.numbers[-1] == desk.numbers[-1] == n_sent - 1)
        known = box.relay()
    assert is_whole(screen.numbers, 1000), (len(screen.numbers), gaps(screen.numbers), known)
    assert is_whole(desk.numbers, 1000), (len(desk.numbers), gaps(desk.numbers), known)
    assert known["counters"]["lost"] == known["send_dropped"] == 0
    assert known["subscribed"] == 50, "who was added stays through reloads"


def test_an_input_that_changes_goes_on_where_it_was(places: Places, tmp_path: Path) -> None:
    """The relay begins anew with another reorder time on the same socket: what came meanwhile was kept in it."""
    source, namespace, (screens, _) = places
    hall = {**HALL, "to": [{"group": "239.2.1.1:5004", "interface": "lan0"}]}
    with (
        RelayBox(namespace, tmp_path, hall=hall) as box,
        Receiver(netns.join(screens, "eth0", "239.2.1.1", 5004)) as screen,
        Sender(source, [("239.1.1.1", 5004)], 2000) as sender,
    ):
        wait_for(lambda: len(screen.datagrams) > 500)
        for reorder in ("20ms", "30ms", "40ms"):
            assert "taken over" in box.reload({"relays": {"hall": {"reorder": reorder}}})
        n_then = len(screen.datagrams)
        wait_for(lambda: len(screen.datagrams) > n_then + 500)
        n_sent = sender.stop()
        wait_for(lambda: screen.numbers[-1] == n_sent - 1)
        counters = box.relay()["counters"]
        assert box.events("relay-signal-lost") == []
    # What a train held when its relay ended is not sent.
    missing = gaps(screen.numbers)
    assert len(missing) <= 3, missing
    assert all(0 < each < 40 for each in missing), missing
    assert counters["packets"] >= len(screen.datagrams), "counters go on"


def test_a_box_without_descriptors_refuses_a_policy_and_relays_on(places: Places, tmp_path: Path) -> None:
    """It was taken over by half: relays had ended, and their sockets could not be copied for the new ones."""
    source, namespace, (screens, _) = places
    relays = {f"r{n}": {"from": [f"rtp://10.0.0.2@239.1.2.{n}:5004"], "interface": "wan"} for n in range(1, 60)}
    relays["r1"] |= {"to": [{"group": "239.2.1.1:5004", "interface": "lan0"}]}
    with (
        RelayBox(namespace, tmp_path, **relays) as box,
        Receiver(netns.join(screens, "eth0", "239.2.1.1", 5004)) as screen,
        Sender(source, [("239.1.2.1", 5004)], 500),
    ):
        wait_for(lambda: len(screen.datagrams) > 100)
        changes = {"relays": {name: {"reorder": "20ms"} for name in relays}}
        pid = box.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        highest = max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 40, before[1]))
        said = box.reload(changes)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert "Too many open files" in said
        assert "refused, the running one stays" in said
        n_then = len(screen.datagrams)
        wait_for(lambda: len(screen.datagrams) > n_then + 200)
        assert is_whole(screen.numbers, 300)
        assert len(box.control("relay ls")["relays"]) == len(relays)
        assert "taken over" in box.reload(changes)


def test_a_backup_takes_over_and_gives_back(places: Places, tmp_path: Path) -> None:
    source, namespace, (screens, _) = places
    hall = {
        "from": ["rtp://239.1.1.1:5004", "rtp://239.1.1.2:5004"],
        "interface": "wan", "mode": "backup", "failover": "300ms",
        "to": [{"group": "239.2.1.1:5004", "interface": "lan0"}],
    }  # fmt: skip
    with (
        RelayBox(namespace, tmp_path, hall=hall) as box,
        Receiver(netns.join(screens, "eth0", "239.2.1.1", 5004)) as screen,
        Sender(source, [("239.1.1.2", 5004)], 200, ssrc=2),
    ):
        with Sender(source, [("239.1.1.1", 5004)], 200, ssrc=1):
            wait_for(lambda: 1 in screen.sources)
            wait_for(lambda: len(screen.datagrams) > 200)
        stopped_s = time.monotonic()
        n_then = len(screen.datagrams)
        wait_for(lambda: 2 in screen.sources[n_then:])
        assert time.monotonic() - stopped_s < 1.5
        wait_for(lambda: box.relay()["active"] == 1)
        with Sender(source, [("239.1.1.1", 5004)], 200, ssrc=3):
            wait_for(lambda: 3 in screen.sources)
            wait_for(lambda: box.relay()["active"] == 0)
        told = wait_for(lambda: len(box.events("relay-switched")) > 1 and box.events("relay-switched"))
    assert told[0]["what"] == "relay hall: backup input rtp://239.1.1.2:5004"
    assert told[1]["what"] == "relay hall: back to input rtp://239.1.1.1:5004"


def test_loss_of_signal_and_its_return_are_told(places: Places, tmp_path: Path) -> None:
    source, namespace, _ = places
    hall = {**HALL, "join": "always", "to": [{"unicast": []}]}
    with RelayBox(namespace, tmp_path, hall=hall) as box:
        with Sender(source, [("239.1.1.1", 5004)], 100):
            wait_for(lambda: box.relay()["state"] == "live")
        wait_for(lambda: box.relay()["state"] == "silent")
        assert box.events("relay-signal-lost")[0]["why"] == "its packets stopped"
        assert box.status()["relays"]["silent"] == 1
        with Sender(source, [("239.1.1.1", 5004)], 100):
            wait_for(lambda: box.events("relay-signal-returned"))
            assert box.relay()["state"] == "live"


def test_an_interface_that_comes_back_is_joined_and_sent_to_again(places: Places, tmp_path: Path) -> None:
    """wan and lan0 are removed and made anew, with other numbers: within 2 s everything goes on."""
    source, namespace, (screens, _) = places
    hall = {**HALL, "to": [{"group": "239.2.1.1:5004", "interface": "lan0"}]}
    with RelayBox(namespace, tmp_path, hall=hall) as box:
        for left, left_name, right_name, network in ((source, "eth0", "wan", 0), (screens, "eth0", "lan0", 1)):
            namespace.ip("link", "del", right_name)
            wait_for(lambda: box.relay()["troubles"])
            left.ip("link", "add", left_name, "type", "veth", "peer", "name", right_name, "netns", namespace.name)
            left.ip("link", "set", left_name, "up")
            left.ip("addr", "add", f"10.{network}.0.2/24", "dev", left_name)
            namespace.ip("link", "set", right_name, "up")
            namespace.ip("addr", "add", f"10.{network}.0.1/24", "dev", right_name)
            begin_s = time.monotonic()
            wait_for(lambda: not box.relay()["troubles"])
            assert time.monotonic() - begin_s < 2
        assert "239.1.1.1" in groups(namespace, "wan")
        with (
            Receiver(netns.join(screens, "eth0", "239.2.1.1", 5004)) as screen,
            Sender(source, [("239.1.1.1", 5004)], 200),
        ):
            wait_for(lambda: len(screen.datagrams) > 100)
        assert [each["why"] for each in box.events("relay-waiting")] == [
            "239.1.1.1: there is no interface wan", "output 0: there is no interface lan0"
        ]  # fmt: skip


def test_a_link_of_a_zone_without_multicast_is_sent_none(places: Places, tmp_path: Path) -> None:
    source, namespace, (wifi, _) = places
    hall = {**HALL, "to": [{"group": "239.2.1.1:5004", "interface": "lan0"}, {"unicast": ["10.1.0.2:6000"]}]}
    box = RelayBox(namespace, tmp_path, hall=hall)
    box.policy["zones"] = {"wifi": {"nets": ["10.1.0.0/24"], "multicast": "never"}}
    with (
        box,
        Receiver(unicast(wifi, "10.1.0.2", 6000)) as single,
        Receiver(netns.join(wifi, "eth0", "239.2.1.1", 5004)) as member,
        Sender(source, [("239.1.1.1", 5004)], 200),
    ):
        wait_for(lambda: len(single.datagrams) > 200)
        assert member.datagrams == []
        assert box.relay()["troubles"] == ["output 0: its zone wifi says multicast: never"]
        assert "taken over" in box.reload({"zones": {"wifi": {"multicast": "allowed"}}})
        wait_for(lambda: len(member.datagrams) > 50)


@pytest.mark.parametrize(
    ("receivers", "kind"),
    [
        ("10.1.0.2", "arguments"),
        ("239.1.1.1:5004", "arguments"),
        ("10.1.0.2:6000,nobody:1", "arguments"),
        ("10.9.0.1:6000", "no-output"),
        ("10.1.0.2:1,10.1.0.2:2,10.1.0.2:3,10.1.0.2:4", "full"),
    ],
)
def test_receivers_that_are_refused(box: RunningBox, receivers: str, kind: str) -> None:
    with pytest.raises(RuntimeError) as refusal:
        box.control("relay add-receiver", name="hall", receivers=receivers)
    assert refusal.value.args[0]["kind"] == kind
    assert "10.1.0.2" not in str(refusal.value)
    assert box.control("relay show", name="hall")["receivers"] == 0


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    hall = {"from": ["udp://127.0.0.1:15004"], "receivers": 3, "to": [{"unicast": [], "zones": ["here"]}]}
    policy = policy_of(
        relays={"hall": hall},
        admin={"address": "127.0.0.1:0"},
        zones={"here": {"nets": ["10.1.0.0/24", "127.0.0.0/8"]}},
    )
    with RunningBox(tmp_path_factory.mktemp("box"), policy) as running:
        yield running


def test_thousands_of_receivers_are_added_by_one_command(tmp_path: Path) -> None:
    """A command whose name has a hyphen was held to the small requests' 64 KiB: 3,000 addresses broke the pipe."""
    receivers = [f"127.1.{number >> 8}.{number & 255}:16000" for number in range(20_000)]
    hall = {"from": ["udp://127.0.0.1:15005"], "to": [{"unicast": [], "zones": ["here"]}]}
    zones = {"here": {"nets": ["127.0.0.0/8"]}}
    with RunningBox(tmp_path, policy_of(relays={"hall": hall}, zones=zones)) as running:
        added = running.control("relay add-receiver", name="hall", receivers=",".join(receivers))
        assert added == {"added": 20_000, "receivers": 20_000}
        with pytest.raises(RuntimeError, match="full"):
            running.control("relay add-receiver", name="hall", receivers="127.2.0.1:16000")
        assert "taken over" in running.reload({"relays": {"hall": {"receivers": 15_000}}})
        assert running.control("relay show", name="hall")["receivers"] == 15_000
        dropped = [each for each in running.control("events")["events"] if each["kind"] == "relay-receivers-dropped"]
        assert "5000 receivers" in dropped[0]["what"]


def test_a_relay_that_would_send_to_itself_is_refused(box: RunningBox) -> None:
    done = box.accelctl("relay", "add-receiver", "hall", "127.0.0.1:15004")
    assert (done.returncode, done.stderr) == (1, "accelctl: that is the input of relay hall: it would go in a circle\n")
    done = box.accelctl("relay", "show", "balcony")
    assert (done.returncode, done.stderr) == (1, "accelctl: no relay is called 'balcony': hall\n")


def test_a_port_that_others_have_refuses_the_policy(box: RunningBox) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        other = {"from": [f"udp://127.0.0.1:{port}"], "to": [{"unicast": []}]}
        before = box.status()["policy"]["generation"]
        said = box.reload(policy=merge(dict(box.policy), {"relays": {"other": other}}))
        assert f"relays.other.from: 127.0.0.1 port {port}: Address already in use" in said
        assert box.status()["policy"]["generation"] == before


def test_the_tables_of_relays(box: RunningBox) -> None:
    listing = box.accelctl("relay", "ls").stdout
    assert "hall" in listing
    assert "waiting" in listing or "idle" in listing
    shown = box.accelctl("relay", "show", "hall").stdout
    assert "udp://127.0.0.1:15004" in shown
    assert box.accelctl("--json", "relay", "top").stdout.startswith('{"relays":[{"name":"hall"')
    metrics = box.metrics()
    assert metrics["accelerator_relay_live{hall}"] == 0
    assert metrics["accelerator_relay_packets_total{hall}"] == 0


def test_an_upgrade_hands_relays_over(tmp_path: Path) -> None:
    """SIGUSR2's way: the successor has the input at once, and relays when the old process has stopped."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
    ):
        made.bind(("127.0.0.1", 0))
        out.bind(("127.0.0.1", 0))
        port, to = made.getsockname()[1], out.getsockname()[1]
        made.close()
        hall = {"from": [f"udp://127.0.0.1:{port}"], "to": [{"unicast": [f"127.0.0.1:{to}"]}]}
        box = UpgradedBox(tmp_path, policy_of(relays={"hall": hall}))
        box.former = []
        stop = threading.Event()
        n_sent = 0

        def send() -> None:
            nonlocal n_sent
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                while not stop.wait(0.002):
                    packet = struct.pack("!BBHIII", 0x80, 33, n_sent & 0xFFFF, n_sent * 10, 7, n_sent) + bytes(180)
                    sender.sendto(packet, ("127.0.0.1", port))
                    n_sent += 1

        with box, Receiver(out) as receiver:
            thread = threading.Thread(target=send)
            thread.start()
            try:
                wait_for(lambda: len(receiver.datagrams) > 200)
                box.upgrade()
                n_then = len(receiver.datagrams)
                wait_for(lambda: len(receiver.datagrams) > n_then + 200)
            finally:
                stop.set()
                thread.join()
            assert box.control("relay show", name="hall")["state"] == "live"
            numbers = receiver.numbers
    assert len(numbers) - len(set(numbers)) == 0, "nothing twice"
    missing = [each for each in gaps(numbers) if each != 1]
    assert sum(missing) - len(missing) <= 100, missing  # 200 ms of this stream


@pytest.mark.rfc(
    "RFC 2974 3", "announced where the stream goes, to the highest address of its scope, and deleted when it ends"
)
def test_what_is_sent_is_announced_and_taken_back(places: Places, tmp_path: Path) -> None:
    source, namespace, (screens, _) = places
    hall = {**HALL, "announce": "Hall", "to": [{"group": "239.255.1.1:5004", "interface": "lan0", "ttl": 2}]}
    with Receiver(netns.join(screens, "eth0", "239.255.255.255", sap.PORT)) as list_of:
        with RelayBox(namespace, tmp_path, hall=hall) as box, Sender(source, [("239.1.1.1", 5004)], 200):
            announced = sap.read(wait_for(lambda: list_of.datagrams)[0])
            description = sdp.read(announced.payload)
            assert (str(announced.source), description.name) == ("10.1.0.1", "Hall")
            (media,) = description.media
            assert (media.port, media.protocol, media.formats) == (5004, "RTP/AVP", ("33",))
            assert str(description.connection.address if description.connection else "") == "239.255.1.1"
            assert sdp.source_filters(description.attributes)[0].sources == (announced.source,)
            assert box.accelctl("relay", "playlist").stdout == "#EXTM3U\n#EXTINF:-1,Hall\nrtp://@239.255.1.1:5004\n"
            assert "taken over" in box.reload({"relays": {"hall": {"announce": "Great Hall"}}})
            wait_for(lambda: len(list_of.datagrams) == 3)
            found = [sap.read(each) for each in list_of.datagrams]
            assert [each.is_deletion for each in found] == [False, True, False]
            assert found[1].hash_ == found[0].hash_
            assert sdp.read(found[2].payload).name == "Great Hall"
        wait_for(lambda: sap.read(list_of.datagrams[-1]).is_deletion)


def test_what_begins_anew_is_what_the_diff_says() -> None:
    """policy/diff.py tells of a gap for the keys that make input_key, and for no other."""
    text = "version: 1\nsite: {name: a}\n"
    text += "relays: {r: {from: ['rtp://239.1.1.1:5004', 'rtp://239.1.1.2:5004'], interface: a},\n"
    text += "  s: {from: ['srt://10.0.0.1:9000']}}\n"
    policy, _ = check_texts([("p", text.encode())])
    assert policy is not None
    values: dict[str, Any] = {
        "from": ["rtp://239.1.1.3:5004"], "interface": "b", "interfaces": ["b", "c"], "mode": "backup",
        "failover": "1s", "reorder": "1s", "sources": ["10.0.0.0/8"], "payload_type": 33, "fec": "both",
        "bitrate": "1Mbit/s", "join": "always", "linger": "1s", "receivers": 5, "announce": "x",
        "to": [{"unicast": []}], "connection": {"latency": "1s"},
        "retransmit": {"from": "10.0.0.1:5005"},
    }  # fmt: skip
    assert values.keys() == policy.relays["r"].model_dump(by_alias=True).keys()
    for key, value in values.items():
        name = "s" if key == "connection" else "r"
        dumped = policy.model_dump(mode="json", by_alias=True)
        dumped["relays"][name][key] = value
        changed = type(policy).model_validate(dumped)
        before, after = ([input_key(row) for row in compile_policy(each).relays] for each in (policy, changed))
        assert (after != before) == (key in RELAY_INPUT_KEYS), key
