"""netd against those who mean it ill, or are clumsy: an acceleratord that somebody has taken over, hosts on the LAN
that forge, disks that are full, processes that end at the wrong moment."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import netns
import pytest
from netd_box import NetdBox, wait_for

from accelerator.kernel import packet_filter, state
from accelerator.kernel.intercept import LOOK_S, Interceptor, rules_of
from accelerator.kernel.state import GENERATION_MAX, Interception, StateError
from accelerator.netd import CLIENTS_MAX, SERVICES_MAX

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


def test_a_full_disk_left_a_policy_said_and_not_done(branch: Branch) -> None:
    (branch.netd.state_dir / "netd-desired.new").mkdir()  # nothing can be written there, as on a full disk
    branch.netd.desire(TV)
    branch.netd.ready()
    branch.netd.desire(TV, multicast_never=["10.9.0.0/16"])
    assert len(branch.netd.events("state-unsaved")) == 1
    (branch.netd.state_dir / "netd-desired.new").rmdir()
    branch.netd.desire(TV)
    assert (branch.netd.state_dir / "netd-desired.json").exists()


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
