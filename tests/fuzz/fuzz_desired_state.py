"""Fuzz target: a desired state on netd's socket. Whatever the values are, they are refused by StateError, or name only
what is ours: no table of the system's, and no line of nft's but those that make our own table.

    .venv/bin/python -m pytest tests/fuzz/fuzz_desired_state.py          a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_desired_state.py 600   so many seconds; prints the number of runs
"""

from __future__ import annotations

import copy
import random
import re
import sys
import time
from typing import Any

from accelerator.kernel import queue_wire, wire
from accelerator.kernel.multicast_wish import multicast_rules, multicast_wish
from accelerator.kernel.objects import PRIORITY_FIRST, PRIORITY_LAST, TABLE_FIRST, TABLE_LAST
from accelerator.kernel.packet_filter import script
from accelerator.kernel.plan import plan, wanted
from accelerator.kernel.queue_plan import FoundQueues
from accelerator.kernel.queue_plan import plan as plan_queues
from accelerator.kernel.queue_wire import LinkRow
from accelerator.kernel.shaped import DEVICE_PREFIX, MAJOR_FIRST, MAJOR_LAST
from accelerator.kernel.state import StateError, decode, encode

_SEED: dict[str, Any] = {
    "multicast": [{"name": "tv", "upstream": "wan", "downstream": ["lan0"], "groups": ["239.0.0.0/8"]}],
    "multicast_routes": [
        {"name": "menu", "source": "10.1.0.7", "group": "239.9.0.1", "interface": "wan", "to": ["lan0", "lan1"]},
        {"name": "clip", "source": None, "group": "ff15::1", "interface": "lan0", "to": ["wan"]},
    ],
    "multicast_never": ["10.12.8.0/22", "2001:db8::/64"],
    "multicast_table": 8600,
    "routes": [
        {"table": 86_001, "destination": "0.0.0.0/0", "gateway": "10.0.0.2", "interface": "wan", "metric": 3},
        {"table": 86_002, "destination": "::/0", "kind": "local", "interface": "lo"},
    ],
    "rules": [{"priority": 8600, "table": 86_001, "mark": 1, "mask": 255, "interface_in": "lan0", "family": 4}],
    "packet_rules": [
        {"hook": "prerouting", "protocol": "tcp", "ports": [80], "destination_not": ["10.0.0.1/32"],
         "interface_in": "lan0", "tproxy": "127.0.0.1:8088", "mark": 86, "verdict": "accept"},
        {"hook": "postrouting", "destination": ["2001:db8::/32", "192.0.2.0/24"], "dscp": 46, "priority": "1:10"},
    ],
    "shapers": [
        {"interface": "wan", "side": "ingress", "major": 0x7A50, "rate_bps": 10**7, "classes": [
            {"minor": 0xFF, "name": "rest", "rate_bps": 10**6, "ceiling_bps": 10**7},
            {"minor": 16, "name": "m", "rate_bps": 10**6, "ceiling_bps": 10**7, "priority": 0, "matches": [
                {"sources": ["10.0.0.0/8", "2001:db8::/32"], "protocol": "udp", "source_ports": [3478], "dscp": 46}]}]},
        {"interface": "lo", "side": "egress", "major": 0x7A10, "rate_bps": 10**10, "classes": []},
    ],
}  # fmt: skip
_VALUES: list[Any] = [
    None, True, -1, 0, 1, 4, 6, 63, 64, 254, 255, 65_536, 2**32, 2**70, 0.5, "", "x", "wan", 'a"b', "a;b",
    "} flush ruleset", "10.0.0.0/8", "10.0.0.1/8", "::/0", "fe80::1%wan", "127.0.0.1:0", "[::1]:80", "1:10 accept",
    "a\nb", "é", [], {}, [[]], ["10.0.0.0/8 }"], "accept", "local", "blackhole", "tcp", "x" * 300, "239.1.1.1",
    "224.0.0.9", "232.1.1.1", "ff02::1", "ff3e::1", 8601, 253,
]  # fmt: skip
_NFT_LINE = re.compile(
    r'(?:add|delete) table inet accelerator|add chain inet accelerator [a-z]+ \{ type [a-z]+ hook [a-z]+ priority '
    r'-150; policy accept; \}|add rule inet accelerator [a-z]+ (?:[^"\n;]|"[^"\n]{1,15}")*'
)


def mutated(random_: random.Random) -> dict[str, Any]:
    state = copy.deepcopy(_SEED)
    for _ in range(random_.randrange(1, 4)):
        rows = state[random_.choice(list(state))]
        if not isinstance(rows, list) or not rows or not isinstance(row := random_.choice(rows), dict):
            continue
        key = random_.choice([*row, random_.choice(["source", "dscp_is", "has_socket", "x", "interface_out"])])
        row[key] = copy.deepcopy(random_.choice(_VALUES))
    for within in ("classes", "matches"):
        inner = [each for row in state["shapers"] if isinstance(row, dict) for each in _rows(row, within)]
        if inner and random_.random() < 0.3:
            row = random_.choice(inner)
            row[random_.choice([*row, "x"])] = copy.deepcopy(random_.choice(_VALUES))
    if random_.random() < 0.05:
        state[random_.choice([*state, "y"])] = copy.deepcopy(random_.choice(_VALUES))
    return state


def read_back(kind: int, body: bytes) -> object:
    """What the kernel would be told, as we read what it says."""
    match kind:
        case queue_wire.RTM_NEWQDISC:
            found = queue_wire.read_qdisc(body)
            ours = (0xFFFF, *range(MAJOR_FIRST, MAJOR_LAST + 1), *range(0x7B00, 0x8B00))
            return found is not None and found[1].handle >> 16 in ours
        case queue_wire.RTM_NEWTCLASS:
            return queue_wire.read_class(body)
        case queue_wire.RTM_NEWTFILTER:
            row = queue_wire.read_filter(body)
            return row is not None and row[1] is not None
    return kind == queue_wire.RTM_NEWLINK


def _rows(shaper: dict[str, Any], within: str) -> list[dict[str, Any]]:
    classes = shaper.get("classes")
    rows = [each for each in classes if isinstance(each, dict)] if isinstance(classes, list) else []
    if within == "classes":
        return rows
    lists = [row.get("matches") for row in rows]
    return [each for rows in lists if isinstance(rows, list) for each in rows if isinstance(each, dict)]


def check(document: dict[str, Any]) -> None:
    """The target's invariant."""
    try:
        state = decode(document)
    except StateError as error:
        if "\n" in error.message:
            raise AssertionError(repr(error.message)) from error
        return
    assert decode(encode(state)) == state
    assert all(TABLE_FIRST <= each.table <= TABLE_LAST for each in (*state.routes, *state.rules))
    assert all(PRIORITY_FIRST <= each.priority <= PRIORITY_LAST for each in state.rules)
    for line in script(state.packet_rules).splitlines():
        assert _NFT_LINE.fullmatch(line), line
    links = {name: LinkRow(name, number, True, "") for number, name in ((1, "lo"), (2, "wan"))}
    for step in plan_queues(state.shapers, FoundQueues(links), frozenset()).steps:
        # Whoever is told: a queue of ours, and no text but tc's usual words.
        assert step.device in ("lo", "wan") or step.device.startswith(DEVICE_PREFIX)
        assert "\n" not in step.text
        for kind, _, body in wire.messages(step.message(1, 2)):
            assert read_back(kind, body)
    # Of multicast: no table of the kernel's own, no route that goes back to where it comes from.
    assert state.multicast_table not in range(252, 256)
    assert all(each.interface not in each.to for each in state.multicast_routes)
    multicast = multicast_wish([state])
    assert multicast.table == (state.multicast_table or None)
    want = wanted(state.routes, [*state.rules, *multicast_rules(multicast)], {"wan": 2, "lo": 1})
    steps = plan(want, (), (), frozenset())
    for row in steps.routes_added:
        for _, _, body in wire.messages(wire.route_message(row, is_added=True)):
            assert wire.read_route(body) == (86, row)
    for rule in steps.rules_added:
        for _, _, body in wire.messages(wire.rule_message(rule, is_added=True)):
            assert wire.read_rule(body) == (86, rule)


def check_bytes(data: bytes) -> None:
    for _, _, body in wire.messages(data):
        wire.read_route(body)
        wire.read_rule(body)
        wire.read_error(body)


def run(seconds: float, seed: int) -> int:
    random_, n, end_s = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < end_s:
        check(mutated(random_))
        check_bytes(random_.randbytes(random_.randrange(200)))
        n += 1
    return n


def test_no_state_names_what_is_not_ours() -> None:
    check(_SEED)
    assert run(1.0, 1) > 100


if __name__ == "__main__":
    print(run(float(sys.argv[1]) if len(sys.argv) > 1 else 60, int(time.time())))
