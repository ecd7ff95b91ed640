"""Relays in a policy: what may be written, what is refused and why, what changes mean."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from accelerator.policy import check_texts, compile_policy
from accelerator.policy.compile import RelayRow
from accelerator.policy.diff import diff_policies
from accelerator.policy.relay_rules import Zones

HEAD = """\
version: 1
site: {name: lyon}
zones:
  desks: {nets: [10.12.0.0/22]}
  wifi: {nets: [10.12.8.0/22], multicast: never}
listen: {lan: {address: "127.0.0.1:8080"}}
origins: {m: {from: ["https://m.corp.example"], hosts: ["*"]}}
"""
HALL = 'from: ["rtp://239.1.1.1:5004"], interface: eth0'


def relays(*texts: str, more: str = "") -> str:
    rows = "".join(f"  r{index}: {{{text}}}\n" for index, text in enumerate(texts))
    return f"{HEAD}{more}relays:\n{rows}"


def problems(text: str) -> list[str]:
    """Messages without their places, warnings marked."""
    _, found = check_texts([("p", text.encode())])
    return [("warning: " if each.is_warning else "") + each.message for each in found]


def compiled(text: str) -> tuple[RelayRow, ...]:
    policy, found = check_texts([("p", text.encode())])
    assert policy is not None, found
    return compile_policy(policy).relays


def test_a_relay_as_the_design_writes_it() -> None:
    text = relays(
        'from: ["rtp://10.1.0.1@239.1.1.1:5004"], interface: eth0, to: [{group: "239.2.1.1:5004", '
        'interface: lan0, ttl: 8, dscp: AF41}, {unicast: ["10.12.0.7:5004"]}, '
        "{http: /relay/hall.ts, zones: [desks, wifi]}]"
    )
    (row,) = compiled(text)
    assert [(each.host, each.port, each.source, each.interface, each.is_rtp) for each in row.inputs] == [
        ("239.1.1.1", 5004, "10.1.0.1", "eth0", True)
    ]
    assert (row.linger_s, row.failover_ns, row.wait_ns, row.receivers_max) == (10, 500_000_000, 50_000_000, 20_000)
    assert [each.kind for each in row.outputs] == ["group", "unicast", "http"]
    assert (row.outputs[0].targets, row.outputs[0].dscp, row.outputs[0].ttl) == ((("239.2.1.1", 5004),), 34, 8)
    assert row.outputs[1].hold_ns == 5_000_000
    assert (row.outputs[2].path, row.outputs[2].hold_ns, row.outputs[2].window_bytes) == (
        "/relay/hall.ts", 20_000_000, 4 << 20,
    )  # fmt: skip
    assert problems(text) == []


def test_legs_backups_and_repair_are_inputs() -> None:
    legs = 'from: ["rtp://239.1.1.1:5004", "rtp://239.1.1.2:5004"], interfaces: [eth0, eth1]'
    legs += ", fec: both, to: [{unicast: []}]"
    (row,) = compiled(relays(legs))
    assert [(each.kind, each.host, each.port, each.interface) for each in row.inputs] == [
        ("media", "239.1.1.1", 5004, "eth0"), ("media", "239.1.1.2", 5004, "eth1"),
        ("fec", "239.1.1.1", 5006, "eth0"), ("fec", "239.1.1.1", 5008, "eth0"),
    ]  # fmt: skip
    assert row.wait_ns == 600_000_000
    (row,) = compiled(relays(legs.replace(", fec: both", "")))
    assert row.wait_ns == 250_000_000
    (row,) = compiled(relays(legs.replace(", fec: both", ", mode: backup, reorder: 20ms, bitrate: 8Mbit/s")))
    assert (row.is_backup, row.wait_ns, row.bitrate_bps) == (True, 20_000_000, 8_000_000)


@pytest.mark.parametrize(
    ("relay", "message"),
    [
        ('from: ["rtsp://239.1.1.1:5004"]', "expected rtp|udp|srt|rist://[SOURCE@]ADDRESS:PORT"),
        ('from: ["rtp://hall.example:5004"]', "an input is an IP address, not 'hall.example'"),
        ('from: ["rtp://239.1.1.1:0"]', "a port is a number from 1 to 65535, got 'rtp://239.1.1.1:0'"),
        ('from: ["udp://224.0.0.5:99"]', "224.0.0.5 belongs to routing protocols"),
        ('from: ["udp://[fd00::1]@239.1.1.1:99"]', "source and address are of two families"),
        ('from: ["srt://239.1.1.1:99"]', "srt connects to one address: neither a group nor a source stands here"),
        ('from: ["srt://10.0.0.1:99", "rist://10.0.0.2:98"]', "inputs of one relay have one scheme"),
        ('from: ["srt://0.0.0.0:99"]', "a caller connects to an address, 0.0.0.0 is none"),
        ('from: ["srt://10.0.0.1:99"], fec: both', "repairs RTP, so the input has to be rtp://"),
        ('from: ["srt://10.0.0.1:99"], payload_type: 33', "payload_type: srt carries none"),
        ('from: ["srt://10.0.0.1:99"], interface: eth0', "interface: has no effect with srt: it joins no group"),
        ('from: ["srt://10.0.0.1:99"], connection: {profile: simple}', "profile: simple is RIST's"),
        ('from: ["srt://10.0.0.1:99"], connection: {stream_id: "a b"}', "1 to 512 printable ASCII characters"),
        ('from: ["srt://10.0.0.1:99"], connection: {mode: listener}', "whoever reaches this port may be the sender"),
        ('from: ["rist://10.0.0.1:99"], connection: {profile: simple}', "has its media on an even port"),
        ('from: ["rist://10.0.0.1:98"], connection: {profile: simple, passphrase: a}', "can't encrypt"),
        ('from: ["rist://10.0.0.1:98"], connection: {stream_id: a}', "is SRT's, RIST has none"),
        ('from: ["udp://239.1.1.1:99"], retransmit: {from: "10.0.0.1:9"}', "asks by RTP's numbers"),
        ('from: ["rtp://10.0.0.1:98", "rtp://10.0.0.1:99"], retransmit: {from: "10.0.0.1:9"}', "asks one sender"),
        (f'{HALL}, payload_type: 97, retransmit: {{from: "10.0.0.1:9"}}', "is that of the stream itself"),
        (f'{HALL}, reorder: 10ms, retransmit: {{from: "10.0.0.1:9"}}', "is over before an answer can come"),
        (f'{HALL}, retransmit: {{from: "239.1.1.1:9"}}', "239.1.1.1 is no single receiver"),
        (f"{HALL}, connection: {{latency: 1s}}", "is for srt:// and rist:// inputs, which connect: rtp doesn't"),
        ('from: ["rtp://232.1.1.1:5004"]', "write rtp://SOURCE@232.1.1.1:5004"),
        ('from: ["rtp://[ff35::1]:5004"]', "ff35::1 is source-specific (RFC 4607)"),
        ('from: ["rtp://[ff12::1]:5004"]', "ff12::1 is of one link alone: interface has to say which"),
        ('from: ["rtp://[fe80::1]:5004"]', "fe80::1 is of one link alone: interface has to say which"),
        ('from: ["rtp://[ff12::1%eth0]:5004"]', "the interface stands under `interface`, not in the address"),
        (f'{HALL}, to: [{{group: "[ff12::1]:5004"}}]', "ff12::1 is of one link alone: interface has to say which"),
        (f'{HALL}, to: [{{unicast: ["[fe80::1]:5004"]}}]', "fe80::1 is an address of one link alone"),
        (f"{HALL}, announce: Hall, to: [{{http: /a}}]", "announce: is for groups that are sent on an interface"),
        (f'{HALL}, announce: Hall, to: [{{group: "239.2.1.1:1"}}]', "announce: is for groups that are sent on an"),
        (f'{HALL}, announce: "two\\nlines", to: [{{http: /a}}]', "expected a name of one line"),
        (f"{HALL}, interfaces: [eth0]", "interfaces: stands beside interface, one of them is enough"),
        (f"{HALL}, fec: both, mode: backup", "mode: has no effect with one input"),
        ('from: ["udp://239.1.1.1:5004"], interface: eth0, fec: columns', "repairs RTP, so the input has to be rtp://"),
        (f'{HALL}, to: [{{ttl: 3}}]', "neither stands here"),
        (f'{HALL}, to: [{{http: /a, unicast: []}}]', "unicast and http stand together"),
        (f'{HALL}, to: [{{group: "10.0.0.1:5004"}}]', "10.0.0.1 is no group: single receivers stand under `unicast`"),
        (f'{HALL}, to: [{{unicast: ["239.3.3.3:5004"]}}]', "239.3.3.3 is no single receiver: groups"),
        (f'{HALL}, to: [{{unicast: ["10.0.0.1:1", "[::1]:1"]}}]', "addresses of one family"),
        (f'{HALL}, to: [{{unicast: ["10.0.0.1:1", "10.0.0.1:1"]}}]', "the same receiver twice"),
        (f'{HALL}, receivers: 1, to: [{{unicast: ["10.0.0.1:1", "10.0.0.1:2"]}}]', "2 are listed, 1 may be"),
        (f'{HALL}, to: [{{unicast: [], zones: [desk]}}]', "unknown zone 'desk' (did you mean 'desks'?)"),
        (f'{HALL}, to: [{{unicast: [], dscp: AF14}}]', "expected a class such as AF41, EF or CS5"),
        (f'{HALL}, to: [{{unicast: [], ttl: 0}}]', "must be from 1 to 255"),
        (f'{HALL}, to: [{{http: relay}}]', "a path starts with '/', got 'relay'"),
        (f'{HALL}, to: [{{http: /a}}, {{http: /a}}]', "/a belongs to relay 'r0' already"),
    ],
)  # fmt: skip
def test_what_is_refused(relay: str, message: str) -> None:
    assert any(message in each for each in problems(relays(relay))), problems(relays(relay))


def test_multicast_never_is_never() -> None:
    text = relays(f'{HALL}, to: [{{group: "239.2.1.1:5004", interface: lan0, zones: [desks, wifi]}}]')
    assert problems(text) == ["relays.r0.to: zone 'wifi' says multicast: never: give it a unicast or http output"]


@pytest.mark.parametrize(
    "relay",
    [
        f'{HALL}, to: [{{group: "udp://@239.2.1.1:5004", interface: lan0}}]',
        f'{HALL}, to: [{{unicast: ["10.0.0.1"]}}]',
        f'{HALL}, to: [{{grp: "239.2.1.1:5004", interface: lan0}}]',
        f'{HALL}, to: [{{http: relay}}]',
        f'{HALL}, to: {{http: /relay}}',
        f"{HALL}, to: [nothing]",
        'from: ["rtp://239.1.1.1:5004"], interface: "no/name", to: [{http: /a}]',
    ],
)  # fmt: skip
def test_one_mistake_is_one_line(relay: str) -> None:
    """An output whose group was wrong was told to have none as well, a wrong interface to be left out."""
    assert len(problems(relays(relay))) == 1, problems(relays(relay))


def test_a_stream_may_be_called_as_people_speak() -> None:
    name = "Große Halle, 1. Stock: „Grüezi“ 'n' co"
    (row,) = compiled(relays(f'{HALL}, announce: "{name}", to: [{{group: "239.2.1.1:1", interface: lan0}}]'))
    assert row.announce == name


def test_relays_that_would_loop_are_refused() -> None:
    back = 'from: ["rtp://239.2.1.1:5004"], interface: lan0, to: [{group: "239.1.1.1:5004", interface: eth0}]'
    forth = f'{HALL}, to: [{{group: "239.2.1.1:5004", interface: lan0}}]'
    found = problems(relays(forth, back))
    assert "relays.r0.to: 239.2.1.1:5004 is the input of relay 'r1': packets would go in a circle" in found
    assert "relays.r1.to: 239.1.1.1:5004 is the input of relay 'r0': packets would go in a circle" in found
    itself = problems(relays(f'{HALL}, to: [{{group: "239.1.1.1:5004", interface: eth0}}]'))
    assert itself == ["relays.r0.to: 239.1.1.1:5004 is the input of relay 'r0': packets would go in a circle"]
    assert problems(relays(f'{HALL}, to: [{{group: "239.1.1.1:5004", interface: lan0}}]')) == [], "another link"
    own = 'from: ["udp://10.0.0.1:7000"], to: [{unicast: ["10.0.0.1:7000"]}]'
    assert "would go in a circle" in problems(relays(own))[0]


def test_groups_that_switches_confuse_are_warned_of() -> None:
    flooded = problems(relays(f'{HALL}, to: [{{group: "239.128.0.5:5004", interface: lan0}}]'))
    assert flooded == ["warning: relays.r0.to: switches take 239.128.0.5 for 224.0.0.x and flood it to every port"]
    alike = f'{HALL}, to: [{{group: "239.2.1.1:1", interface: lan0}}, {{group: "239.130.1.1:1", interface: lan0}}]'
    assert problems(relays(alike)) == [
        "warning: relays.r0.to: 239.130.1.1 has the Ethernet address of 239.2.1.1: who joins one is sent both"
    ]
    assert problems(relays(alike.replace("lan0}]", "lan1}]"))) == []
    wide = problems(relays(f'{HALL}, to: [{{group: "224.5.1.1:5004", interface: lan0}}]'))
    assert "with ttl 8 it may leave" in wide[0]


def test_a_group_that_is_proxied_and_sent_again() -> None:
    proxy = "multicast: {proxies: {tv: {upstream: eth0, downstream: [lan0], groups: [239.2.0.0/16]}}}\n"
    output = f'{HALL}, to: [{{group: "239.2.1.1:5004", interface: lan0}}]'
    assert problems(relays(output, more=proxy)) == [
        "relays.r0.to: 239.2.1.1 on lan0 is also forwarded by multicast.proxies.tv: receivers would have it twice"
    ]
    assert problems(relays(output, more=proxy.replace("239.2.", "239.3."))) == []
    route = "multicast: {routes: {menu: {group: 239.2.1.1, from: eth0, to: [lan0]}}}\n"
    assert problems(relays(output, more=route)) == [
        "relays.r0.to: 239.2.1.1 on lan0 is also sent by multicast.routes.menu: two streams in one group"
    ]
    assert problems(relays(output, more=route.replace("lan0", "lan1"))) == []
    anything = problems(relays(output, more=proxy.replace(", groups: [239.2.0.0/16]", "")))
    assert len(anything) == 1
    assert anything[0].startswith("warning: ")


def test_an_outputs_port_takes_no_inputs_packets() -> None:
    """Seen by reading: the socket that was bound last got what was meant for the input on the same port."""
    source = 'from: ["udp://0.0.0.0:7000"], to: [{unicast: []}]'
    screens = f'{HALL}, to: [{{unicast: ["10.0.0.9:6000"], source_port: 7000}}]'
    assert problems(relays(source, screens)) == [
        "relays.r1.to: 7000 is the port of an input of relay 'r0' on any address: give the input an address, or the "
        "output another port"
    ]
    assert problems(relays(source, screens.replace('"10.0.0.9:6000"', ""))) != [], "whoever comes later"
    assert problems(relays(source.replace("0.0.0.0", "10.0.0.1"), screens)) == [], "the address decides"
    assert problems(relays(source, screens.replace("10.0.0.9", "[2001:db8::9]"))) == [], "another family"
    assert problems(relays(source, screens.replace(": 7000", ": 7001"))) == []


def test_one_own_address_is_one_relays() -> None:
    own = 'from: ["udp://10.0.0.1:7000"], to: [{unicast: []}]'
    assert problems(relays(own, own)) == ["relays.r1.from: 10.0.0.1:7000 is the input of relay 'r0' already"]


def test_what_changes_mean() -> None:
    policies = []
    for output, failover in (("[]", "1s"), ('["10.0.0.1:1"]', "1s"), ('["10.0.0.1:1"]', "2s")):
        text = relays(f"{HALL}, failover: {failover}, to: [{{unicast: {output}}}]")
        policies.append(check_texts([("p", text.encode())])[0])
    nothing = check_texts([("p", HEAD.encode())])[0]
    first, second, third = policies
    assert first is not None
    assert second is not None
    assert third is not None
    assert nothing is not None
    assert [each.text for each in diff_policies(first, second).effects] == [
        "relay 'r0': outputs change; receivers that stay see no gap"
    ]
    assert diff_policies(first, second).changes[0].key == "relays.r0.to"
    assert [each.text for each in diff_policies(second, third).effects] == [
        "relay 'r0': its input begins anew, with a gap of some milliseconds"
    ]
    assert [each.text for each in diff_policies(nothing, first).effects] == ["relay 'r0' begins"]
    assert "leaves" not in str(diff_policies(first, nothing).changes[0])
    assert diff_policies(first, nothing).effects[0].text.startswith("relay 'r0' ends")


def test_the_most_specific_zone_wins() -> None:
    nets = {
        "all": ["0.0.0.0/0"],
        "site": ["10.12.0.0/16"],
        "room": ["10.12.30.0/24", "fd00::/64"],
        "late": ["10.12.30.0/24"],
    }
    zones = Zones({name: tuple(map(ip_network, each)) for name, each in nets.items()})
    found = {
        text: zones.of(ip_address(text)) for text in ("10.12.30.7", "10.12.31.7", "192.0.2.1", "fd00::7", "fd01::7")
    }
    assert list(found.values()) == ["room", "site", "all", "room", None]


def test_an_output_is_paced_by_a_rate_or_as_measured() -> None:
    (row,) = compiled(
        relays(f'{HALL}, to: [{{unicast: ["10.0.0.9:1"], rate: measured}}, {{unicast: ["10.0.0.8:1"], rate: 8Mbit/s}}]')
    )
    assert [each.rate_bps for each in row.outputs] == [-1, 8_000_000]
    policy, _ = check_texts([("p", relays(f'{HALL}, to: [{{unicast: ["10.0.0.9:1"], rate: measured}}]').encode())])
    assert policy is not None
    assert policy.model_dump(mode="json", by_alias=True)["relays"]["r0"]["to"][0]["rate"] == "measured"
    assert "rate" in " ".join(problems(relays(f'{HALL}, to: [{{unicast: ["10.0.0.9:1"], rate: mesured}}]')))
