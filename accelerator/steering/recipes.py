"""Policy routing towards the box for common routers, with a probe of its health: where the probe fails the router sends
viewers' packets their usual way, so that a dead box costs nobody video. Pure text, from the policy; nothing is
sent to a router. Names in capitals are for the reader to fill in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from accelerator.policy.model import Policy

# As routers write them: GigabitEthernet0/0/1.10, ge-0/0/1, lan0.
_INTERFACE = re.compile(r"[A-Za-z0-9._:/@-]{1,64}")
PROBE = "/.well-known/accelerator/health"


class RecipeError(ValueError):
    """The policy doesn't say enough: one clear line."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every recipe needs. `nets`: whose packets are sent to the box; `to`: only what goes there, () for anywhere;
    `port` of the probe."""

    site: str
    box: str
    port: int
    nets: tuple[IPv4Network | IPv6Network, ...]
    interface: str
    to: tuple[IPv4Network | IPv6Network, ...] = ()

    @property
    def version(self) -> int:
        """Of IP: the box's address says for which one a recipe is."""
        return ip_address(self.box).version

    @property
    def probe(self) -> str:
        return f"http://{f'[{self.box}]' if self.version == 6 else self.box}:{self.port}{PROBE}"

    def acl(self) -> list[tuple[str, str]]:
        """Source and destination of each pair, as an access list writes them."""
        to = [f"{net.network_address} {net.hostmask}" for net in self.to] or ["any"]
        return [(f"{net.network_address} {net.hostmask}", each) for net in self.nets for each in to]


def plan_of(policy: Policy, box: str | None, interface: str | None) -> Plan:
    """`box`: the address that the router knows it by; by default one that the policy says."""
    address = box or _address_of(policy)
    try:
        version = ip_address(address).version
    except ValueError:
        raise RecipeError(f"--box is the box's address, not a name: {address}") from None
    # A listener of one family doesn't answer probes of the other.
    reached = [row for row in policy.listen.values() if not row.tls and not row.address.is_loopback]
    plain = [row.address.port for row in reached if ip_address(row.address.host).version == version]
    if not plain:
        raise RecipeError(f"the probe needs a listener without TLS that others reach by IPv{version} (listen), "
                          "and there is none")  # fmt: skip
    zones = [net for zone in policy.zones.values() for net in zone.nets]
    nets = _of(version, zones, "zones")
    everybody = ip_network("0.0.0.0/0" if version == 4 else "::/0")
    taken = policy.steering.intercept
    # What the box would only pass on need not come to it.
    to = () if taken is None else _of(version, taken.destinations, "steering.intercept.destinations")
    if interface is not None and not _INTERFACE.fullmatch(interface):
        raise RecipeError(f"--interface is the name of an interface: {interface!r}")
    name = interface or "LAN-INTERFACE"
    return Plan(policy.site.name, str(ip_address(address)), plain[0], nets or (everybody,), name, to)


def _of(version: int, nets: Sequence[IPv4Network | IPv6Network], key: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Those of one family. None of any: policy says nothing; none of this one: nobody is meant, not everybody."""
    found = tuple(net for net in nets if net.version == version)
    if nets and not found:
        raise RecipeError(f"{key} has no IPv{version} network: name the box's IPv{10 - version} address with --box")
    return found


def _address_of(policy: Policy) -> str:
    listening = [row.address.host for row in policy.listen.values() if not row.address.is_loopback]
    for host in (*policy.steering.hosts, *listening):
        try:
            if not ip_address(host).is_unspecified:
                return host
        except ValueError:
            continue
    raise RecipeError("the policy doesn't say which address the box has: name it with --box ADDRESS")


def _ios_xe(plan: Plan) -> list[str]:
    permits = [f" permit tcp {source} {to} eq 80" for source, to in plan.acl()]
    return [
        "ip sla 80",
        f" http get {plan.probe}",
        " threshold 2000",
        " timeout 2000",
        " frequency 5",
        "ip sla schedule 80 life forever start-time now",
        "track 80 ip sla 80 reachability",
        " delay down 5 up 30",
        "ip access-list extended VIDEO-TO-BOX",
        f" deny tcp host {plan.box} any",
        *permits,
        "route-map VIDEO-TO-BOX permit 10",
        " match ip address VIDEO-TO-BOX",
        f" set ip next-hop verify-availability {plan.box} 1 track 80",
        f"interface {plan.interface}",
        " ip policy route-map VIDEO-TO-BOX",
    ]


def _junos(plan: Plan) -> list[str]:
    filtered = "set firewall family inet filter VIDEO-TO-BOX term"
    sources = [f"{filtered} video from source-address {net}" for net in plan.nets]
    sources += [f"{filtered} video from destination-address {net}" for net in plan.to]
    route = "set services ip-monitoring policy BOX then preferred-route routing-instances TO-BOX route 0.0.0.0/0"
    probe = "set services rpm probe BOX test HEALTH"
    return [
        f"{probe} probe-type http-get",
        f"{probe} target url {plan.probe}",
        f"{probe} probe-count 2",
        f"{probe} probe-interval 2",
        f"{probe} test-interval 1",
        f"{probe} thresholds successive-loss 2",
        "set services ip-monitoring policy BOX match rpm-probe BOX",
        f"{route} next-hop WAN-GATEWAY",
        f"{route} preferred-metric 2",
        "set routing-instances TO-BOX instance-type forwarding",
        f"set routing-instances TO-BOX routing-options static route 0.0.0.0/0 next-hop {plan.box}",
        "set routing-options rib-groups TO-BOX import-rib [ inet.0 TO-BOX.inet.0 ]",
        "set routing-options interface-routes rib-group inet TO-BOX",
        f"{filtered} own from source-address {plan.box}/32",
        f"{filtered} own then accept",
        *sources,
        f"{filtered} video from protocol tcp",
        f"{filtered} video from destination-port 80",
        f"{filtered} video then routing-instance TO-BOX",
        f"{filtered} rest then accept",
        f"set interfaces {plan.interface} unit 0 family inet filter input VIDEO-TO-BOX",
    ]


def _fortigate(plan: Plan) -> list[str]:
    sources = " ".join(f'"{net.network_address}/{net.netmask}"' for net in plan.nets)
    to = " ".join(f'"{net.network_address}/{net.netmask}"' for net in plan.to)
    return [
        "config system link-monitor",
        '    edit "video-box"',
        '        set srcintf "BOX-INTERFACE"',
        f'        set server "{plan.box}"',
        f"        set gateway-ip {plan.box}",
        "        set protocol http",
        f"        set port {plan.port}",
        f'        set http-get "{PROBE}"',
        '        set http-match "ok"',
        "        set interval 5000",
        "        set failtime 2",
        "        set update-policy-route enable",
        "        set update-static-route disable",
        "        set update-cascade-interface disable",
        "    next",
        "end",
        "config router policy",
        "    edit 79",
        f'        set input-device "{plan.interface}"',
        f'        set src "{plan.box}/255.255.255.255"',
        "        set action deny",
        "    next",
        "    edit 80",
        f'        set input-device "{plan.interface}"',
        f"        set src {sources}",
        *([f"        set dst {to}"] if to else []),
        "        set protocol 6",
        "        set start-port 80",
        "        set end-port 80",
        f"        set gateway {plan.box}",
        '        set output-device "BOX-INTERFACE"',
        "    next",
        "end",
    ]


def _linux(plan: Plan) -> list[str]:
    nets = ", ".join(map(str, plan.nets))
    family, ip = ("ip6", "ip -6") if plan.version == 6 else ("ip", "ip")
    to = f"{family} daddr {{ {', '.join(map(str, plan.to))} }} " if plan.to else ""
    return [
        "# nft rules, a table and a rule; the loop withdraws the rule while the probe fails. As root, or in a unit.",
        "nft -f - <<'RULES'",
        f"table {family} video_to_box",
        f"delete table {family} video_to_box",
        f"table {family} video_to_box {{",
        "    chain mark_video {",
        "        type filter hook prerouting priority mangle;",
        f"        {family} saddr {plan.box} return",
        f"        iifname {plan.interface} {family} saddr {{ {nets} }} {to}tcp dport 80 meta mark set 0x80",
        "    }",
        "}",
        "RULES",
        f"{ip} route replace default via {plan.box} table 80",
        "while sleep 5; do",
        f"    if curl --silent --fail --globoff --max-time 2 --output /dev/null {plan.probe}; then",
        f"        {ip} rule show | grep -q 'fwmark 0x80 lookup 80' || {ip} rule add fwmark 0x80 table 80 priority 80",
        "    else",
        f"        {ip} rule del fwmark 0x80 table 80 priority 80 2>/dev/null",
        "    fi",
        "done",
    ]


def _mikrotik(plan: Plan) -> list[str]:
    lists = [f"/ip firewall address-list add list=video-viewers address={net}" for net in plan.nets]
    lists += [f"/ip firewall address-list add list=video-servers address={net}" for net in plan.to]
    to = "dst-address-list=video-servers " if plan.to else ""
    route = '/ip route set [find comment="video-box"] disabled'
    return [
        "# FastTrack carries connections past mangle: leave it off for these viewers, or they are not sent to the box.",
        "/routing table add name=to-box fib",
        f'/ip route add dst-address=0.0.0.0/0 gateway={plan.box} routing-table=to-box comment="video-box"',
        *lists,
        f"/ip firewall mangle add chain=prerouting in-interface={plan.interface} src-address={plan.box} action=accept",
        f"/ip firewall mangle add chain=prerouting in-interface={plan.interface} src-address-list=video-viewers {to}"
        "dst-address-type=!local protocol=tcp dst-port=80 action=mark-routing new-routing-mark=to-box passthrough=no",
        "/system scheduler add name=video-box interval=5s "
        f'on-event=":do {{ /tool fetch url=\\"{plan.probe}\\" output=none; '
        f'{_escaped(route)}=no }} on-error={{ {_escaped(route)}=yes }}"',
    ]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


ROUTERS: Mapping[str, Callable[[Plan], list[str]]] = {
    "cisco-ios-xe": _ios_xe,
    "fortigate": _fortigate,
    "juniper": _junos,
    "linux": _linux,
    "mikrotik": _mikrotik,
}
_BOTH = ("linux",)
_COMMENTS = {"cisco-ios-xe": "!", "fortigate": "#", "juniper": "#", "linux": "#", "mikrotik": "#"}


def recipe(router: str, plan: Plan) -> str:
    """Lines to paste, with a head that says what they do."""
    if plan.version == 6 and router not in _BOTH:
        raise RecipeError(f"the recipe for {router} is for IPv4: name the box's IPv4 address with --box "
                          "(docs/steering.md says why)")  # fmt: skip
    mark = _COMMENTS[router]
    head = [
        f"{mark} Video accelerator {plan.site}: viewers' plain HTTP by IPv{plan.version} goes to {plan.box} while its "
        "health probe answers.",
        f"{mark} What the box itself sends is left alone, or it would come back to it. For the same reason the box "
        "stands",
        f"{mark} behind another interface (VLAN) than the viewers: what it passes on must not be sent back to it.",
    ]
    return "\n".join([*head, *ROUTERS[router](plan), ""])
