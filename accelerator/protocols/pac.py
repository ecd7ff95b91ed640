"""Proxy auto-configuration: the script by which browsers decide what goes through the box. Pure.

It asks no name server, so that a page with a hundred hosts costs nothing, and every answer ends in DIRECT: a browser
whose proxy is dead goes on without it. Plain http only, and what CONNECT may reach: the rest the box could only
refuse.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

CONTENT_TYPE = "application/x-ns-proxy-autoconfig"

_SCRIPT = """\
// Made by the video accelerator of %(site)s from its policy. Changes here are lost.
var PROXY = %(proxy)s;
var EXACT = %(exact)s;
var SUFFIXES = %(suffixes)s;
var TUNNELS = %(tunnels)s;
var NETS = %(nets)s;
var NETS6 = %(nets6)s;
var EVERY_HOST = %(every)s;

function inZone() {
  if (!NETS.length && !NETS6.length) return true;
  var own = "";
  try { own = myIpAddress(); } catch (unknown) { return false; }
  for (var i = 0; i < NETS.length; i++)
    if (own.indexOf(":") < 0 && isInNet(own, NETS[i][0], NETS[i][1])) return true;
  for (var j = 0; j < NETS6.length; j++)
    if (own.indexOf(":") >= 0 && typeof isInNetEx === "function" && isInNetEx(own, NETS6[j])) return true;
  return false;
}

function known(host) {
  if (EVERY_HOST || EXACT.hasOwnProperty(host)) return true;
  for (var i = 0; i < SUFFIXES.length; i++) {
    var at = host.length - SUFFIXES[i].length;
    if (at > 0 && host.lastIndexOf(SUFFIXES[i]) === at) return true;
  }
  return false;
}

function portOf(url) {
  var found = /^https:\\/\\/(?:[^\\/?#@]*@)?(?:\\[[^\\]]*\\]|[^:\\/?#]*)(?::(\\d+))?/.exec(url);
  return found && found[1] ? found[1] : "443";
}

function FindProxyForURL(url, host) {
  host = host.toLowerCase();
  if (host.charAt(host.length - 1) === ".") host = host.substring(0, host.length - 1);
  var wanted = false;
  if (url.substring(0, 5).toLowerCase() === "http:") wanted = known(host);
  else if (url.substring(0, 6).toLowerCase() === "https:") wanted = TUNNELS.hasOwnProperty(host + ":" + portOf(url));
  return wanted && inZone() ? PROXY + "; DIRECT" : "DIRECT";
}
"""


def pac_script(
    site: str,
    proxy: str,
    hosts: Sequence[str],
    nets: Sequence[str] = (),
    tunnels: Sequence[str] = (),
    own_hosts: Sequence[str] = (),
) -> str:
    """`hosts`: patterns of origins as policy has them; `nets`: of the zones that are sent here, none: everybody;
    `tunnels`: HOST:PORT that CONNECT may reach. The box's own names are never asked for through itself."""
    networks = [ip_network(net) for net in nets]
    exact = {host: 1 for host in hosts if not host.startswith("*") and host not in own_hosts}
    return _SCRIPT % {
        "site": "".join(each for each in site if each.isalnum() or each in ".-_"),
        "proxy": json.dumps(f"PROXY {proxy}"),
        "exact": json.dumps(exact, sort_keys=True),
        "suffixes": json.dumps(sorted(host[1:] for host in hosts if host.startswith("*."))),
        "tunnels": json.dumps(dict.fromkeys(tunnels, 1), sort_keys=True),
        "nets": json.dumps(
            [[str(net.network_address), str(net.netmask)] for net in networks if isinstance(net, IPv4Network)]
        ),
        "nets6": json.dumps([str(net) for net in networks if isinstance(net, IPv6Network)]),
        "every": json.dumps("*" in hosts),
    }
