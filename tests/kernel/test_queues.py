"""Queues of netd's: HTB at an interface's egress, and behind an ifb device for what comes in; and others who meddle."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netns
import pytest
from inline_traffic import compete, narrow, steady
from netd_box import NetdBox, wait_for

from accelerator.kernel.reconcile import FIGHT_ROUNDS
from accelerator.kernel.state import decode, encode
from accelerator.policy import check_texts, compile_policy
from accelerator.services.netd.wishes import desired

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

MEETINGS = {"minor": 0x10, "name": "meetings", "rate_bps": 5_000_000, "ceiling_bps": 18_000_000, "priority": 0}
REST = {"minor": 0xFF, "name": "the rest", "rate_bps": 13_000_000, "ceiling_bps": 18_000_000}
EGRESS = {"interface": "lan0", "side": "egress", "major": 0x7A10, "rate_bps": 18_000_000, "classes": [MEETINGS, REST]}
FILTERED = {**MEETINGS, "matches": [
    {"sources": ["10.0.0.0/25", "fd00::/64"], "protocol": "udp", "source_ports": [3478, 3479]}, {"dscp": 46},
]}  # fmt: skip
INGRESS = {"interface": "wan", "side": "ingress", "major": 0x7A50, "rate_bps": 18_000_000, "classes": [FILTERED, REST]}
IFB = "accel-ifb64"


class Box(NetdBox):
    def want(self, *shapers: dict[str, Any], **state: Any) -> None:
        self._generation += 1
        self.ask("desire", service="test", generation=self._generation, state={"shapers": list(shapers), **state})

    def kernel(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.ask("show")["kernel"]
        return shown

    def settled(self, seconds: float = 1.0) -> None:
        def is_right() -> bool:
            shown = self.kernel()
            return shown["n_steps"] == 0 and not shown["problem"] and not shown["waiting_for"]

        try:
            wait_for(is_right, "the kernel is as wanted", seconds)
        except AssertionError as error:
            shown = self.kernel()
            raise AssertionError(f"{error}: {shown['steps']}, {shown['problem']}") from None

    def events(self) -> list[str]:
        return [each["kind"] for each in self.ask("show")["events"]]

    def tc(self, *words: str) -> str:
        return self.namespace.run("tc", *words)

    def queues(self) -> str:
        """All that there is of traffic control and of ifb devices."""
        shown = [self.tc("qdisc", "show"), self.tc("filter", "show", "dev", "wan", "ingress")]
        text = "\n".join([*shown, self.namespace.ip("-br", "link", "show", "type", "ifb")])
        # A count, and what tc writes only where the root's qdisc isn't clsact.
        return re.sub(r"direct_packets_stat \d+", "", text).replace("filter parent ffff: ", "filter ")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with netns.Topology() as topology:
        _, namespace, _ = topology.proxy()
        with Box(namespace, tmp_path) as running:
            yield running


def test_queues_are_there_and_go_without_a_trace(box: Box) -> None:
    before = box.queues()
    box.want(EGRESS, INGRESS)
    box.settled(3)
    classes = box.tc("class", "show", "dev", "lan0")
    assert "class htb 7a10:10 parent 7a10:1 leaf 7b10: prio 0 rate 5Mbit ceil 18Mbit" in classes, classes
    filters = box.tc("filter", "show", "dev", IFB)
    assert filters.count("flowid 7a50:10") == 6, filters
    assert IFB in box.tc("filter", "show", "dev", "wan", "ingress")
    shown = box.kernel()
    assert [(row["interface"], row["device"]) for row in shown["queues"]] == [("lan0", "lan0"), ("wan", IFB)]
    assert all(each["is_there"] for row in shown["queues"] for each in row["classes"])
    box.want()
    box.settled(3)
    assert box.queues() == before


def test_forwarded_unicast_loses_nothing_while_netd_is_killed_and_comes_back(tmp_path: Path) -> None:
    """By a route, a rule, marks and queues of ours: 1,000 packets a second, through kill -9 and a new netd's first
    pass."""
    with netns.Topology() as topology:
        origin, namespace, (viewer,) = topology.proxy()
        namespace.sysctl("net.ipv4.ip_forward", "1")
        namespace.ip("route", "del", "10.1.0.0/24")  # only ours leads there
        with Box(namespace, tmp_path) as box:
            state = desired_of({**LINK, "shape": {"ingress": True, "egress": True}}, MEETINGS_BY_PORT)
            state["routes"] = [{"table": 86_050, "destination": "10.1.0.0/24", "interface": "lan0"}]
            state["rules"] = [{"priority": 8650, "table": 86_050, "destination": "10.1.0.0/24"}]
            box.want(*state.pop("shapers"), **state)
            box.settled(3)

            def killed() -> None:
                box.stop(signal.SIGKILL)
                box.start()
                box.settled(5)

            came = steady(origin, viewer, "10.1.0.2", killed)
            assert "kernel-repaired" not in box.events()
    assert came.ef_sent > 100
    assert came.ef_received == came.ef_sent


def test_another_policy_changes_what_differs_and_loses_nothing_that_waits(box: Box) -> None:
    box.want(EGRESS, INGRESS)
    box.settled(3)
    other = {**MEETINGS, "minor": 0x11, "name": "calls", "rate_bps": 3_000_000}
    slower = {**REST, "rate_bps": 9_000_000}
    filtered = {**other, "matches": [{"dscp": 34}]}
    box.want({**EGRESS, "classes": [other, slower]}, {**INGRESS, "classes": [filtered, slower]})
    box.settled(3)
    assert "rate 9Mbit" in box.tc("class", "show", "dev", "lan0")
    for device in ("lan0", IFB):
        classes = box.tc("class", "show", "dev", device)
        assert ":11 " in classes, classes
        assert ":10 " not in classes, classes
    assert box.tc("filter", "show", "dev", IFB).count("flowid") == 2
    assert "kernel-repaired" not in box.events()


def test_what_somebody_takes_out_of_the_queues_is_back_within_a_second(box: Box) -> None:
    box.want(EGRESS, INGRESS)
    box.settled(3)
    for n, meddling in enumerate((
        ("tc", "qdisc", "del", "dev", "lan0", "root"),
        ("tc", "qdisc", "del", "dev", "wan", "ingress"),
        ("tc", "filter", "del", "dev", "wan", "ingress"),
        ("tc", "filter", "del", "dev", IFB),
        ("tc", "class", "change", "dev", "lan0", "parent", "7a10:1", "classid", "7a10:10", "htb", "rate", "1mbit"),
        ("tc", "class", "del", "dev", "lan0", "classid", "7a10:ff"),
    )):  # fmt: skip
        box.namespace.run(*meddling)
        wait_for(lambda n=n: box.events().count("kernel-repaired") > n, " ".join(meddling), 1.0)
        box.settled()
        if n == 2:
            box.want(EGRESS, INGRESS, rules=[{"priority": 8600, "table": 86001}])  # its own count of fights
            box.settled(3)


def test_an_ifb_device_that_somebody_deletes_is_back_with_all_that_leads_there(box: Box) -> None:
    """Without it all that comes in by the link would be dropped."""
    box.want(INGRESS)
    box.settled(3)
    box.namespace.ip("link", "del", IFB)
    wait_for(lambda: "kernel-repaired" in box.events(), "it is noticed", 1.0)
    box.settled()
    box.namespace.ip("link", "set", IFB, "down")
    wait_for(lambda: box.events().count("kernel-repaired") > 1, "it is noticed", 1.0)
    box.settled()


def test_nobody_elses_queues_are_touched(box: Box) -> None:
    his = ("dev", "lan0", "root", "handle", "1:", "tbf", "rate", "1gbit", "burst", "1mb", "limit", "1mb")
    box.tc("qdisc", "add", *his)
    box.tc("qdisc", "add", "dev", "wan", "clsact")
    before = box.queues()
    box.want(EGRESS, INGRESS)
    wait_for(lambda: box.events().count("queue-taken") == 2, "two events")
    assert box.queues() == before
    assert box.kernel()["taken_interfaces"] == ["lan0", "wan"]
    # Once he has gone.
    box.tc("qdisc", "del", "dev", "lan0", "root")
    box.tc("qdisc", "del", "dev", "wan", "clsact")
    box.settled()
    # Somebody who puts his own in our place.
    box.tc("qdisc", "replace", *his)
    wait_for(lambda: box.events().count("queue-taken") == 3, "an event")
    box.want()
    wait_for(lambda: not box.kernel()["queues"], "nothing is wanted")
    assert "tbf 1:" in box.tc("qdisc", "show", "dev", "lan0")


def test_a_filter_of_somebody_elses_at_the_ingress_stays_and_keeps_us_out(box: Box) -> None:
    box.want(INGRESS)
    box.settled(3)
    box.tc("qdisc", "del", "dev", "wan", "ingress")
    box.settled()
    before = box.queues()
    everything = ("u32", "match", "u32", "0", "0", "action", "mirred", "egress", "mirror", "dev", "lan0")
    box.tc("filter", "add", "dev", "wan", "ingress", "pref", "10", "protocol", "ip", *everything)
    wait_for(lambda: "queue-taken" in box.events(), "an event")
    box.tc("filter", "del", "dev", "wan", "ingress", "pref", "10")
    box.settled()
    assert box.queues() == before


def test_a_fight_over_queues_ends(box: Box) -> None:
    box.want(EGRESS)
    box.settled(3)
    for n in range(FIGHT_ROUNDS):
        box.tc("qdisc", "del", "dev", "lan0", "root")
        wait_for(lambda n=n: box.events().count("kernel-repaired") > n, "it is back", 2)
    wait_for(lambda: "kernel-fight" in box.events(), "an event")
    assert box.kernel()["stopped"] == ["queues of lan0"]
    box.tc("qdisc", "del", "dev", "lan0", "root")
    wait_for(lambda: box.kernel()["n_steps"], "it is left alone")


def test_queues_outlive_netd_and_nothing_is_done_to_them_by_the_next_one(box: Box) -> None:
    box.want(EGRESS, INGRESS)
    box.settled(3)
    before = box.queues()
    box.stop(signal.SIGKILL)
    monitor = box.namespace.popen("tc", "monitor", stdout=(box.state_dir / "heard").open("wb"))
    try:
        box.start()
        box.settled()
        box.tc("qdisc", "add", "dev", "lo", "root", "handle", "9:", "pfifo")
        wait_for(lambda: b"pfifo 9:" in (box.state_dir / "heard").read_bytes(), "the monitor hears")
    finally:
        monitor.kill()
        monitor.wait()
    assert "htb" not in (box.state_dir / "heard").read_text()
    box.tc("qdisc", "del", "dev", "lo", "root")
    assert box.queues() == before


NONSENSE: list[dict[str, Any]] = [
    {**EGRESS, "major": 1},
    {**EGRESS, "side": "both"},
    {**EGRESS, "interface": "a/b"},
    {**EGRESS, "rate_bps": 0},
    {**EGRESS, "classes": [{**MEETINGS, "minor": 1}]},
    {**EGRESS, "classes": [MEETINGS, MEETINGS]},
    {**EGRESS, "classes": [{**MEETINGS, "priority": 8}]},
    {**EGRESS, "shell": "; reboot"},
    {**INGRESS, "classes": [MEETINGS]},
    {**INGRESS, "classes": [{**MEETINGS, "matches": [{}]}, REST]},
    {**INGRESS, "classes": [{**MEETINGS, "matches": [{"source_ports": [1]}]}, REST]},
    {**INGRESS, "classes": [{**MEETINGS, "matches": [{"protocol": "udp", "source_ports": list(range(1, 300))}]}, REST]},
]


def test_nonsense_about_queues_is_refused_whole(box: Box) -> None:
    for shaper in NONSENSE:
        with pytest.raises(RuntimeError, match=r"."):
            box.want(shaper)
    with pytest.raises(RuntimeError, match="two shapers"):
        box.want(EGRESS, {**EGRESS, "major": 0x7A11})
    assert box.kernel()["wanted"]["queues"] == 0


LINK = {"interface": "wan", "down": "20Mbit/s", "up": "20Mbit/s", "video": "15Mbit/s"}


def desired_of(link: dict[str, Any], marks: dict[str, Any]) -> dict[str, Any]:
    """What such a policy wants of the kernel."""
    policy, problems = check_texts([("p", json.dumps({
        "version": 1, "site": {"name": "t"}, "links": {"main": link}, "marks": marks,
        "classes": {"webcast": {"dscp": "AF31", "guarantee": "40%"}},
    }).encode())])  # fmt: skip
    assert policy is not None, problems
    state = encode(desired(compile_policy(policy)))
    assert decode(state) == desired(compile_policy(policy))
    return state


def counted(box: Box, name: str) -> dict[str, Any]:
    rows = [each for row in box.ask("queues")["queues"] for each in row["classes"] if each["name"] == name]
    assert rows
    return dict(rows[0])


MEETINGS_BY_MARK = {"phones": {"marked": "EF"}}
MEETINGS_BY_PORT = {"meetings": {"nets": ["10.0.0.0/24"], "ports": [3478]}}


@pytest.mark.parametrize(
    ("shape", "marks", "is_up"),
    [
        ({"ingress": True}, MEETINGS_BY_MARK, False),
        ({"ingress": True}, MEETINGS_BY_PORT, False),
        ({"lan": "lan0"}, MEETINGS_BY_PORT, False),
        ({"egress": True}, MEETINGS_BY_PORT, True),
    ],
    ids=["ingress by mark", "ingress by port", "lan by port", "egress by port"],
)
def test_a_meeting_beside_bulk_through_an_inline_box_loses_nothing(
    tmp_path: Path, shape: dict[str, Any], marks: dict[str, Any], is_up: bool
) -> None:
    """Beside a bulk flow that fills our queue, on a link of 20 Mbit/s. Where the machine is busy, senders burst, and
    the provider's queue loses something: three tries."""
    is_marked, lost = "phones" in marks, []
    with netns.Topology() as topology:
        origin, namespace, (viewer,) = topology.proxy()
        namespace.sysctl("net.ipv4.ip_forward", "1")
        narrow(origin, namespace, viewer)
        with Box(namespace, tmp_path) as box:
            state = desired_of({**LINK, "shape": shape}, marks)
            box.want(*state.pop("shapers"), **state)
            box.settled(3)
            for _ in range(3):
                before = counted(box, "(the rest)")["drops"]

                def is_full(before: int = before) -> bool:
                    return bool(counted(box, "(the rest)")["drops"] > before)

                if is_up:
                    came = compete(viewer, origin, "10.0.0.2", 2.0, ef_dscp=0, until=is_full)
                else:
                    dscp = 46 if is_marked else 0
                    came = compete(origin, viewer, "10.1.0.2", 2.0, ef_dscp=dscp, ef_source_port=3478, until=is_full)
                assert came.ef_sent > 300
                lost.append(came.ef_loss)
                if lost[-1] < 0.001:
                    break
            meeting = counted(box, next(iter(marks)))
    assert meeting["drops"] == 0
    assert meeting["packets"] >= came.ef_received
    assert came.bulk_bytes > 0
    assert min(lost) < 0.001, lost
