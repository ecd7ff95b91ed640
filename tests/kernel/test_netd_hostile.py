"""netd against those who mean it ill, or are clumsy: an acceleratord that somebody has taken over, hosts on the LAN
that forge, disks that are full, processes that end at the wrong moment."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import netns
import pytest
from netd_box import NETD, NetdBox, wait_for
from streams import ASM, FAMILIES, PORT, SOURCE, Count, Stream

from accelerator.kernel import packet_filter, state
from accelerator.kernel.intercept import LOOK_S, TABLE, Interceptor, rules_of
from accelerator.kernel.links import read_links
from accelerator.kernel.state import GENERATION_MAX, Interception, StateError
from accelerator.kernel.stream_watch import NEWS_MAX
from accelerator.netd import CLIENTS_MAX, SERVICES_MAX, THREADS
from accelerator.protocols import igmp
from accelerator.protocols.membership.messages import Query
from accelerator.protocols.membership.wire import checksum
from accelerator.services.logs.events import Events
from accelerator.services.netd import client

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

TV: dict[str, object] = {"name": "tv", "upstream": "wan", "downstream": ["lan0", "lan1"]}


class Branch:
    """The topology and netd in its middle."""

    def __init__(self, topology: netns.Topology, state_dir: Path) -> None:
        self.source, self.box, self.hosts = topology.proxy(2)
        self.netd = NetdBox(self.box, state_dir)


def connection_to(netd: NetdBox) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    made.connect(str(netd.state_dir / "netd.sock"))
    return made


@pytest.fixture
def branch(tmp_path: Path) -> Iterator[Branch]:
    with netns.Topology() as topology:
        made = Branch(topology, tmp_path)
        with made.netd:
            yield made


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetdBox]:
    """netd in a namespace without wires, for what is said to its socket."""
    with netns.Topology() as topology, NetdBox(topology.namespace("box"), tmp_path_factory.mktemp("netd")) as netd:
        yield netd


@pytest.mark.parametrize(
    "document",
    [
        {"packet_rules": [{"hook": "forward", "source": ["fe80::% } drop\nadd table inet theirs\n#/64"], "dscp": 1}]},
        {"packet_rules": [{"hook": "input", "destination_not": ["fe80::%;flush ruleset/64"], "dscp": 1}]},
        {"intercept": {"interfaces": ["a"], "destinations": ["fe80::%x/64"], "ports": [80], "port": 8080}},
        {"multicast_never": ["fe80::%x/64"]},
    ],
)
def test_a_networks_scope_said_anything_to_nft(document: object) -> None:
    """A scope is any text, line feeds included, and stands in the network's text."""
    with pytest.raises(StateError, match="is no network"):
        state.decode(document)


def test_an_interfaces_name_ended_the_text_of_interception(lonely: NetdBox) -> None:
    text = rules_of(Interception(('x"}drop;#', "eth*"), ("10.0.0.0/8",), (80,), 8080))
    lonely.namespace.run("nft", "-c", text)
    assert 'x"' not in text
    assert "*" not in text


def test_followers_that_had_gone_kept_others_out_until_the_next_event(lonely: NetdBox) -> None:
    for _ in range(2 * CLIENTS_MAX):
        with connection_to(lonely) as connection, connection.makefile("rb") as reader:
            connection.sendall(b'{"command": "follow"}\n')
            assert json.loads(reader.readline())["ok"]
    wait_for(lambda: lonely.ask("show"), "netd answers")


def forge(host: netns.Namespace, source: str, group: str) -> None:
    """One packet of a host's that names another's address as its sender."""

    def sent() -> None:
        is_v6 = ":" in group
        packed = [socket.inet_pton(socket.AF_INET6 if is_v6 else socket.AF_INET, each) for each in (source, group)]
        udp = struct.pack("!HHHH", 9, 9, 8, 0)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            if is_v6:
                packet = struct.pack("!IHBB", 6 << 28, len(udp), 17, 8) + b"".join(packed) + udp
                to = b"\x33\x33" + packed[1][-4:]
            else:
                head = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 8, 17, 0) + b"".join(packed)
                packet = head[:10] + checksum(head).to_bytes(2) + head[12:] + udp
                to = b"\x01\x00\x5e" + bytes([packed[1][1] & 127]) + packed[1][2:]
            raw.send(to + bytes(6) + (0x86DD if is_v6 else 0x0800).to_bytes(2) + packet)

    host.call(sent)


@FAMILIES
def test_a_forged_sender_took_a_stream_from_all_who_watched_it(branch: Branch, is_v6: bool) -> None:
    """The kernel has one route for a source and group: it went to the link of the packet, for five seconds each."""
    group, name = ASM[is_v6], "tv"
    branch.netd.desire(TV)
    branch.netd.ready()
    count = Count(netns.join(branch.hosts[1], "eth0", group, PORT))
    wait_for(lambda: branch.netd.proxy(is_v6=is_v6, name=name)["routes"], "the route")
    stream = Stream(branch.source, group, 500)
    wait_for(lambda: len(count.numbers) > 50, "packets")
    forge(branch.hosts[0], SOURCE[is_v6], group)
    (event,) = wait_for(lambda: branch.netd.events("stream-forged"), "an event")
    assert SOURCE[is_v6] not in event["message"], "it may be a viewer's"
    n_seen = len(count.numbers)
    wait_for(lambda: len(count.numbers) > n_seen + 200, "packets")
    stream.stop()
    assert count.stop() == list(range(stream.n_sent))
    # Who really is on the link sends as before.
    camera = netns.sender(branch.hosts[0], "eth0", is_v6=is_v6)
    heard = netns.join(branch.hosts[1], "eth0", group, PORT + 1)
    camera.sendto(b"from the LAN", (group, PORT + 1))
    assert heard.recv(100) == b"from the LAN"
    camera.close()
    heard.close()


def test_forged_senders_filled_the_log(branch: Branch) -> None:
    branch.netd.desire(TV)
    branch.netd.ready()
    member = netns.join(branch.hosts[1], "eth0", ASM[False], PORT)
    for number in range(2 * NEWS_MAX):
        forge(branch.hosts[0], f"192.0.2.{number}", ASM[False])
        wait_for(lambda number=number: len(branch.netd.proxy()["routes"]) > number, "netd has seen it")
    assert len(branch.netd.events("stream-forged")) == NEWS_MAX
    member.close()


def test_forged_queries_filled_the_log(branch: Branch) -> None:
    """Two that take the office from each other with each query, hundreds a second."""
    branch.box.ip("-4", "addr", "flush", "dev", "lan0")
    branch.box.ip("addr", "add", "10.1.0.200/24", "dev", "lan0")
    branch.netd.desire({**TV, "downstream": ["lan0"]})
    branch.netd.ready()

    def flooded() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.1.0.2"))
            for number in range(500):
                query = Query(2, 10.0)
                sender = socket.inet_aton(f"10.1.0.{3 + number % 2}")
                for packet in igmp.write(query, sender):
                    raw.sendto(packet.data, ("224.0.0.1", 0))

    branch.hosts[0].call(flooded)
    wait_for(lambda: branch.netd.proxy()["downstreams"]["lan0"]["querier"] == "10.1.0.4", "the last one is heard")
    assert len(branch.netd.events("querier-changed")) <= 2


def test_a_full_disk_left_a_policy_said_and_not_done(branch: Branch) -> None:
    (branch.netd.state_dir / "netd-desired.new").mkdir()  # nothing can be written there, as on a full disk
    branch.netd.desire(TV)
    branch.netd.ready()
    branch.netd.desire(TV, multicast_never=["10.9.0.0/16"])
    assert len(branch.netd.events("state-unsaved")) == 1
    (branch.netd.state_dir / "netd-desired.new").rmdir()
    branch.netd.desire(TV)
    assert (branch.netd.state_dir / "netd-desired.json").exists()


def test_an_interface_with_an_odd_name_ended_netd_for_good(branch: Branch) -> None:
    """The kernel takes any bytes, and each start found them again."""
    branch.box.ip("link", "add", os.fsdecode(b"br\xff"), "type", "bridge")
    branch.netd.desire(TV)
    branch.netd.ready()


def test_a_link_with_a_peer_asked_as_its_peer(branch: Branch) -> None:
    """PPP's links have an address for each end: MLD's packets had the other end's as their sender, and never left."""
    branch.box.ip("-6", "addr", "flush", "dev", "lan0")
    branch.box.ip("-6", "addr", "add", "fe80::77", "peer", "fe80::78", "dev", "lan0", "nodad")
    link = branch.box.call(lambda: asyncio.run(read_links()))["lan0"]
    assert link.address6 == socket.inet_pton(socket.AF_INET6, "fe80::77")


def test_no_other_keeper_could_be_started(branch: Branch) -> None:
    """netd went on without one, and said nothing of it. Takes netd's five seconds until it tries again."""
    branch.netd.desire(TV)
    branch.netd.ready()
    path = branch.netd.state_dir / "netd-keeper.sock"
    (keeper,) = branch.netd.keepers()
    path.unlink()
    path.mkdir()  # nothing can be bound there
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: branch.netd.events("keeper-missing"), "an event", 20)
    path.rmdir()
    wait_for(lambda: branch.netd.events("keeper-restarted"), "another keeper", 20)
    assert len(branch.netd.keepers()) == 1


def test_what_netd_leaves_when_it_ends_stayed_for_good(branch: Branch) -> None:
    """Queues of an old policy shaped a link after the product had gone."""
    box = branch.box

    def kernel() -> str:
        lists = ("rule", "-6 rule", "route show table all", "mrule", "link show type ifb")
        listed = "".join(box.ip(*words.split()) for words in lists) + box.run("nft", "list", "ruleset")
        listed += "\n".join(each for each in box.run("tc", "qdisc").splitlines() if "noqueue" not in each)
        return listed + box.read("/proc/net/ip_mr_vif") + box.read("/proc/net/ip6_mr_vif")

    box.run("nft", "add", "table", "inet", "somebodys")
    before = kernel()
    shaped = {"minor": 255, "name": "rest", "rate_bps": 1_000_000, "ceiling_bps": 10_000_000}
    branch.netd.desire(
        TV,
        routes=[{"table": 86_001, "destination": "10.99.0.0/24", "gateway": "10.1.0.2", "interface": "lan0"}],
        rules=[{"priority": 8601, "table": 86_001, "destination": "10.99.0.0/24"}],
        packet_rules=[{"hook": "forward", "dscp_is": 0, "dscp": 46}],
        shapers=[{"interface": "wan", "side": "egress", "major": 0x7A10, "rate_bps": 10_000_000, "classes": [shaped]}],
        intercept={"interfaces": ["lan0"], "destinations": ["10.0.0.0/24"], "ports": [80], "port": 8080},
    )
    branch.netd.ready()
    with connection_to(branch.netd) as beating:

        def is_whole() -> bool:
            beating.sendall(b'{"command": "alive", "args": {}}\n')
            beating.recv(1000)
            found = kernel()
            return all(word in found for word in ("86001", "7780", "accelerator_intercept", "htb", "dscp set ef"))

        wait_for(is_whole, "all of it is there")
        branch.netd.stop(signal.SIGKILL)
    removing = box.popen(str(NETD), "--state-dir", str(branch.netd.state_dir), "--remove", stderr=subprocess.PIPE)
    assert removing.communicate(timeout=30)[1] == b""
    assert removing.returncode == 0
    wait_for(lambda: kernel() == before, "nothing of ours is left, and nothing of others' is gone")
    branch.netd.start()
    assert branch.netd.ask("show")["services"] == {}


def test_one_of_two_acceleratords_that_ends_withdraws_nothing(branch: Branch) -> None:
    """As one takes over from another."""
    branch.netd.desire(
        intercept={"interfaces": ["lan0"], "destinations": ["10.0.0.0/24"], "ports": [80], "port": 8080}
    )
    with connection_to(branch.netd) as old, connection_to(branch.netd) as new:

        def is_active(connection: socket.socket) -> bool:
            connection.sendall(b'{"command": "alive", "args": {}}\n')
            return bool(json.loads(connection.recv(1000))["result"]["active"])

        wait_for(lambda: is_active(old) and is_active(new), "interception is on")
        old.close()
        # netd has seen the end when it answers another connection's second question.
        for _ in range(20):
            branch.netd.ask("show")
            assert is_active(new)
    wait_for(lambda: branch.netd.events("intercept-off"), "the last one's end withdraws it")
    assert len(branch.netd.events("intercept-off")) == 1


def test_an_nft_that_fails_filled_the_log_and_left_the_rule_that_interception_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice a second, for as long as it failed."""
    told: list[str] = []
    nft = tmp_path / "nft"
    nft.write_text("#!/bin/sh\necho a kernel without nf_tables >&2; exit 1\n")
    nft.chmod(0o755)
    wish = Interception(("lo",), ("10.9.0.0/24",), (80,), 8080)

    async def intercepting(box: netns.Namespace) -> None:
        made = Interceptor(lambda event: told.append(event["message"]))
        running = asyncio.create_task(made.run())
        made.want(wish)
        made.beat()
        await until(lambda: "lookup 7780" in box.ip("rule"))
        await asyncio.sleep(3 * LOOK_S)  # time for several failures
        made.want(None)
        monkeypatch.setattr(packet_filter, "_NFT", "/usr/sbin/nft")
        await until(lambda: "lookup 7780" not in box.ip("rule"))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    monkeypatch.setattr(packet_filter, "_NFT", str(nft))
    with netns.Topology() as topology:
        box = topology.namespace("box")
        box.call(lambda: asyncio.run(intercepting(box)))
    assert told == ["interception can't be changed: nft: a kernel without nf_tables"]


def test_a_rule_that_went_while_interception_was_put_in_was_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was marked then led nowhere: viewers' connections would have been dropped until something else changed."""
    listed = packet_filter.listed
    n_listed = 0

    async def intercepting(box: netns.Namespace) -> None:
        async def meddled(table: str) -> tuple[str, int] | None:
            nonlocal n_listed
            n_listed += 1
            if n_listed == 1:
                box.ip("rule", "del", "pref", "7780")
            return await listed(table)

        monkeypatch.setattr(packet_filter, "listed", meddled)
        made = Interceptor(lambda event: None)
        running = asyncio.create_task(made.run())
        made.want(Interception(("lo",), ("10.9.0.0/24",), (80,), 8080))
        made.beat()
        await until(lambda: n_listed > 1 and "lookup 7780" in box.ip("rule"))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with netns.Topology() as topology:
        box = topology.namespace("box")
        box.call(lambda: asyncio.run(intercepting(box)))


def test_netd_that_ended_while_it_put_interception_in_left_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody watched over it any more."""
    is_listing = False

    async def intercepting(box: netns.Namespace) -> None:
        async def never(table: str) -> None:
            nonlocal is_listing
            is_listing = True
            await asyncio.Event().wait()

        monkeypatch.setattr(packet_filter, "listed", never)
        made = Interceptor(lambda event: None)
        running = asyncio.create_task(made.run())
        made.want(Interception(("lo",), ("10.9.0.0/24",), (80,), 8080))
        made.beat()
        await until(lambda: is_listing)
        assert TABLE in box.run("nft", "list", "ruleset")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert TABLE not in box.run("nft", "list", "ruleset")
        assert "7780" not in box.ip("rule")

    with netns.Topology() as topology:
        box = topology.namespace("box")
        box.call(lambda: asyncio.run(intercepting(box)))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


def test_a_last_generation_left_no_room_for_the_next_acceleratord(lonely: NetdBox) -> None:
    with pytest.raises(RuntimeError, match="generation is a number up to"):
        lonely.ask("desire", service="policy", generation=10**4000, state={})
    lonely.ask("desire", service="policy", generation=GENERATION_MAX, state={})
    lonely.ask("desire", service="policy", generation=GENERATION_MAX, state={"multicast": [TV]})
    assert lonely.ask("show")["services"]["policy"]["state"]["multicast"]


def test_services_were_as_many_as_somebody_named(lonely: NetdBox) -> None:
    for number in range(SERVICES_MAX - len(lonely.ask("show")["services"])):
        lonely.ask("desire", service=f"s{number}", generation=1, state={})
    with pytest.raises(RuntimeError, match=f"{SERVICES_MAX} services"):
        lonely.ask("desire", service="one-more", generation=1, state={})
    lonely.ask("desire", service="s0", generation=2, state={})


def test_a_port_that_is_none_ended_the_connection_without_a_word(lonely: NetdBox) -> None:
    for port in ([], {}, "80", None, True):
        with pytest.raises(RuntimeError, match="no interception with that port"):
            lonely.ask("transparent", port=port)


def test_a_netd_that_hangs_was_named_without_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence ended with a colon; and who had not started it was told of an errno."""
    monkeypatch.setattr(client, "SHOW_S", 0.05)
    asking = client.NetdClient(tmp_path / "netd.sock", Events())
    with pytest.raises(client.NetdError, match="doesn't run with this state directory"):
        asyncio.run(asking.show())
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "netd.sock"))
        silent.listen()
        with pytest.raises(client.NetdError, match="doesn't answer in"):
            asyncio.run(asking.show())


def test_who_asked_often_could_use_up_the_tasks_that_the_unit_allows(lonely: NetdBox) -> None:
    """On a machine of many cores: the next thread was refused, and netd ended."""
    connections = [connection_to(lonely) for _ in range(2 * THREADS)]
    for each in connections:
        each.settimeout(60)
        each.sendall(b'{"command": "show"}\n')
    for each in connections:
        with each, each.makefile("rb") as reader:
            assert json.loads(reader.readline())["ok"]
    assert lonely.process is not None
    assert len(os.listdir(f"/proc/{lonely.process.pid}/task")) <= 1 + THREADS
