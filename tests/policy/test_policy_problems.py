"""What is refused, where, and in which words: each case is a text and the whole list of its problems."""

# ruff: noqa: E501 - each line of the tables is one case
from __future__ import annotations

import os
from pathlib import Path

import pytest

from accelerator.errors import PolicyError, Problem
from accelerator.policy import Policy, check_policy, check_texts, load_policy

# Two lines that every case begins with, so that its own first line is line 3.
HEAD = "version: 1\nsite: {name: a}\n"
LISTEN = "listen: {lan: {address: '127.0.0.1:8080'}}\n"
ORIGINS = "origins: {media: {from: ['http://a.example'], hosts: [b]}}\n"
NOTHING_TO_DO = ("no listeners: nobody can connect", "no origins: every request is answered 421")


def checked(text: str | bytes) -> tuple[Policy | None, list[str]]:
    """The policy and its problems as LINE:COLUMN: message, less the warnings that it does nothing."""
    data = text.encode() if isinstance(text, str) else text
    policy, problems = check_texts([("p", data)])
    assert (policy is None) == any(not problem.is_warning for problem in problems)
    assert all(isinstance(problem, Problem) and problem.file == "p" for problem in problems)
    return policy, [str(problem).removeprefix("p:") for problem in problems if problem.message not in NOTHING_TO_DO]


YAML = [
    pytest.param("a: &x 1\nb: *x\n", ["3:1: unknown key 'a'", "3:4: anchor '&x' is refused: write values out where they are used",
                 "4:1: unknown key 'b'", "4:4: alias '*x' is refused: write the value out"], id="anchor-alias"),
    pytest.param("zones: !!map {}\n", ["3:8: tag 'tag:yaml.org,2002:map' is refused: values are read by what their key expects"], id="tag"),
    pytest.param("zones: !x {}\n", ["3:8: tag '!x' is refused: values are read by what their key expects"], id="own-tag"),
    pytest.param("workers: ! 2\n", ["3:10: tag '!' is refused: values are read by what their key expects"], id="bare-tag"),
    pytest.param("workers: 2\nworkers: 3\n", ["4:1: duplicate key 'workers': it is already in line 3"], id="duplicate"),
    pytest.param("workers: 2\n'workers': 3\n", ["4:1: duplicate key 'workers': it is already in line 3"], id="duplicate-quoted"),
    pytest.param("zones: {a: {}, b: {}, a: {}}\n", ["3:23: duplicate key 'a': it is already in line 3"], id="duplicate-nested"),
    pytest.param("---\nversion: 1\n", ["3:1: a second document in one file: write one file for each"], id="documents"),
    pytest.param("? [a, b]\n: c\n", ["3:3: a key is one word of text"], id="list-key"),
    pytest.param("? {a: b}\n: c\n", ["3:3: a key is one word of text"], id="map-key"),
    pytest.param("? \n: c\n", ["3:2: a key is one word of text"], id="empty-key"),
    pytest.param("<<: {workers: 2}\n", ["3:1: unknown key '<<'"], id="merge-key"),
    pytest.param("x: \0\n", ["3:4: character U+0000 is refused"], id="nul"),
    pytest.param("# \u202e\n", ["3:3: character U+202E is refused"], id="bidi"),
    pytest.param("# \u2028\n", ["3:3: character U+2028 is refused"], id="line-separator"),
    pytest.param("zones:\r\n  a: {b: }\r\n", ["4:7: unknown key 'b' in zones.a"], id="crlf"),
    pytest.param("é: 1\n", ["3:1: unknown key 'é'"], id="utf-8"),
    pytest.param("zones: {'éé': {}, b: 1}\n", ["3:9: zones: 'éé' is not a name: a letter, then letters, digits, '-' and '_', at most 64 characters",
                 "3:22: zones.b: expected a map, got text"], id="column-in-characters"),
]  # fmt: skip

KEYS = [
    pytest.param("multicast: {proxies: {a: {upstream: a/b, downstream: [], groups: [10.0.0.0/8]}}}\n",
                 ["3:37: multicast.proxies.a.upstream: expected the name of an interface such as 'eth0', got 'a/b'",
                  "3:54: multicast.proxies.a.downstream: must not be empty",
                  "3:67: multicast.proxies.a.groups: 10.0.0.0/8 is no range of groups: expected one such as '239.0.0.0/8'"], id="multicast-values"),
    pytest.param("multicast: {querier: {mode: maybe, robustness: 8}}\n",
                 ["3:29: multicast.querier.mode: expected if-none, always or never, got 'maybe'",
                  "3:48: multicast.querier.robustness: must be from 1 to 7"], id="multicast-querier"),
    pytest.param("orgins: {}\n", ["3:1: unknown key 'orgins' (did you mean 'origins'?)"], id="unknown-top"),
    pytest.param("cache: {memry: 1MiB}\n", ["3:9: unknown key 'memry' in cache (did you mean 'memory'?)"], id="unknown-nested"),
    pytest.param(LISTEN + "origins:\n  m:\n    form: [x]\n    hosts: [h]\n",
                 ["5:3: missing required key 'from' in origins.m", "6:5: unknown key 'form' in origins.m (did you mean 'from'?)"], id="unknown-and-missing"),
    pytest.param("cache: {zzz: 1}\n", ["3:9: unknown key 'zzz' in cache"], id="unknown-without-near"),
    pytest.param("cache: {'a\\b': 1}\n", [r"3:9: unknown key 'a\\b' in cache"], id="unknown-odd"),
    pytest.param("links: {a: {interface: eth0, video: 9Mbit/s, down: 8Mbit/s}, b: {interface: eth0}}\n",
                 ["3:37: links.a.video: 9Mbit/s is more than the link's 8Mbit/s",
                  "3:77: links.b.interface: eth0 is link 'a' already"], id="links"),
    pytest.param("links: {a: {interface: eth0, video: 9Mbit/s}}\nclasses:\n  x: {guarantee: 60%, ceiling: 50%}\n  y: {guarantee: 50%}\n",
                 ["5:18: classes.x.guarantee: 60% is more than the class's ceiling of 50%",
                  "6:18: classes.y.guarantee: all guarantees together are 110% of a link, the most is 100%"], id="guarantees"),
    pytest.param("classes: {x: {guarantee: 40%}}\n",
                 ["3:26: warning: classes.x.guarantee: has no effect without a link that has a video budget (links.NAME.video)"], id="guarantee-of-nothing"),
    pytest.param("cache: {disk: {path: ., size: 20GiB}}\n", ["3:22: cache.disk.path: expected the name of a folder, such as 'cache'"], id="disk-path"),
    pytest.param("listen: {lan: {address: '127.0.0.1:1', tls: [site, 1x]}}\n", ["3:52: listen.lan.tls: '1x' is not a name: a letter, then letters, digits, '-' and '_', at most 64 characters"], id="tls-name"),
    pytest.param("listen: {lan: {address: '127.0.0.1:1', tls: [a, b, a]}}\n", ["3:52: listen.lan.tls: 'a' stands there twice"], id="tls-twice"),
    pytest.param("zones: {a: {nets: [], ceiling: 3Mbit/s}}\n", ["3:23: unknown key 'ceiling' in zones.a"], id="later-ceiling"),
    pytest.param("classes: {a: {store: tape, quota: 0.7}}\n", ["3:22: classes.a.store: expected memory or disk, got 'tape'", "3:35: classes.a.quota: expected a share such as '70%', got '0.7'"], id="class-values"),
    pytest.param("classes: {a: {pin: true, quota: 50%}}\n", ["3:20: classes.a.pin: pinned means on the disk: needs store: disk and cache.disk"], id="pin-without-disk"),
    pytest.param("cache: {disk: {}}\nclasses: {a: {pin: true, quota: 50%}, b: {pin: true, quota: 26%}, c: {}}\n",
                 ["4:48: classes.b.pin: pinned classes have quotas of 76% of the disk together, the most is 75%: the rest has to turn over"], id="pins-too-many"),
    pytest.param("cache: {disk: {}}\nclasses: {a: {pin: true}}\n",
                 ["4:20: classes.a.pin: pinned classes have quotas of 100% of the disk together, the most is 75%: the rest has to turn over"], id="pin-without-quota"),
    pytest.param("zones: {1a: {}}\n", ["3:9: zones: '1a' is not a name: a letter, then letters, digits, '-' and '_', at most 64 characters"], id="bad-name"),
]  # fmt: skip

VALUES = [
    pytest.param("cache: {memory: 512}\n", ["3:17: cache.memory: a size needs a unit: KiB, MiB, GiB, kB, MB or GB (did you mean '512MiB'?)"], id="bare-size"),
    pytest.param("cache: {memory: 8MiB}\n", ["3:17: cache.memory: must be from 16MiB to 4096GiB"], id="memory-low"),
    pytest.param("cache: {memory: 15.999MiB}\n", ["3:17: cache.memory: '15.999MiB' is not a whole number of bytes"], id="memory-odd"),
    pytest.param("cache: {memory: }\n", ["3:9: cache.memory: has no value"], id="empty-scalar"),
    pytest.param("cache: {memory: [1MiB]}\n", ["3:17: cache.memory: expected text such as '4096GiB', got a list"], id="list-for-size"),
    pytest.param("cache: 1MiB\n", ["3:8: cache: expected a map, got text"], id="text-for-map"),
    pytest.param("zones: [a]\n", ["3:8: zones: expected a map, got a list"], id="list-for-map"),
    pytest.param("zones: {a: {nets: 10.0.0.0/8}}\n", ["3:19: zones.a.nets: expected a list, got text (did you mean '[10.0.0.0/8]'?)"], id="text-for-list"),
    pytest.param("zones: {a: {nets: {b: c}}}\n", ["3:19: zones.a.nets: expected a list, got a map"], id="map-for-list"),
    pytest.param("zones:\n  a:\n    nets:\n      - 10.0.0.0/8\n      - 10.0.0.1/8\n",
                 ["7:9: zones.a.nets: 10.0.0.1/8 has bits set right of its prefix (did you mean '10.0.0.0/8'?)"], id="list-item"),
    pytest.param("limits: {drain: 1:30}\n", ["3:17: limits.drain: expected a time such as '10s', got '1:30'"], id="sexagesimal"),
    pytest.param("limits: {send_rate: 8000}\n", ["3:21: limits.send_rate: a rate needs a unit: bit/s, kbit/s, Mbit/s or Gbit/s (did you mean '8kbit/s'?)"], id="bare-rate"),
    pytest.param("limits: {connections: 0x10}\n", ["3:23: limits.connections: expected a whole number, got '0x10'"], id="hex"),
    pytest.param("limits: {connections: +5}\n", ["3:23: limits.connections: expected a whole number, got '+5'"], id="sign"),
    pytest.param("limits: {connections: 1_0}\n", ["3:23: limits.connections: expected a whole number, got '1_0'"], id="underscore"),
    pytest.param("limits: {connections: 0}\n", ["3:23: limits.connections: must be from 1 to 10000000"], id="zero"),
    pytest.param("workers: 0\n", ["3:10: workers: must be auto, or from 1 to 64"], id="no-workers"),
    pytest.param("workers: many\n", ["3:10: workers: expected auto or a number of workers, got 'many'"], id="workers-text"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b'], hosts: [h], override_private: yes}}\n",
                 ["4:67: origins.m.override_private: expected true or false, got 'yes' (did you mean 'true'?)"], id="switch"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b'], hosts: [h], profile: medai}}\n",
                 ["4:58: origins.m.profile: expected media or generic, got 'medai' (did you mean 'media'?)"], id="choice"),
    pytest.param(LISTEN + "origins: {m: {from: [], hosts: []}}\n",
                 ["4:21: origins.m.from: must not be empty", "4:32: origins.m.hosts: must not be empty"], id="empty-lists"),
    pytest.param(LISTEN + "origins: {m: {from: , hosts: }}\n",
                 ["4:15: origins.m.from: has no value", "4:23: origins.m.hosts: has no value"], id="empty-required"),
    pytest.param("listen: {a: {address: 'localhost:80'}}\n",
                 ["3:23: listen.a.address: an address to listen on is an IP address, not 'localhost' (did you mean '127.0.0.1'?)"], id="address"),
    pytest.param("listen: {a: {zones: [" + "b," * 65 + "]}}\nzones: {b: {}}\n",
                 ["3:10: missing required key 'address' in listen.a", "3:21: listen.a.zones: has more than 64 entries"], id="too-many"),
    pytest.param("admin: {address: }\n", ["3:9: admin.address: has no value"], id="admin"),
]  # fmt: skip

TOGETHER = [
    pytest.param(LISTEN + ORIGINS + "multicast: {proxies: {a: {upstream: eth0, downstream: [lan0, eth0]}, b: {upstream: lan0, downstream: [x]}}}\n",
                 ["5:62: multicast.proxies.a.downstream: eth0 stands in multicast.proxies.a.upstream already: that would loop",
                  "5:84: multicast.proxies.b.upstream: lan0 stands in multicast.proxies.a.downstream already: that would loop"], id="multicast-loop"),
    pytest.param(LISTEN + ORIGINS + "multicast:\n  table: 254\n  proxies: {tv: {upstream: eth0, downstream: [lan0], sources: [10.0.0.0/8]}}\n  routes:\n"
                 "    a: {group: 239.1.1.1, from: eth1, to: [eth1, lan1, lan1]}\n"
                 "    b: {group: 239.1.1.1, from: eth2, to: [eth1]}\n"
                 "    c: {group: 232.1.1.1, from: eth1, to: [lan1]}\n"
                 "    d: {group: 239.1.1.2, source: '2001:db8::1', from: eth1, to: [lan1]}\n"
                 "    e: {group: 239.1.1.3, from: lan0, to: [lan1]}\n"
                 "    f: {group: 239.1.1.4, from: eth0, to: [lan1]}\n"
                 "    g: {group: 239.1.1.5, source: 10.1.0.2, from: lan0, to: [eth0]}\n",
                 ["6:10: multicast.table: 254 is one of the kernel's own: leave it out for the usual one",
                  "9:44: multicast.routes.a.to: eth1 is where the packets come from: that would loop",
                  "9:56: multicast.routes.a.to: lan1 stands there twice",
                  "10:16: multicast.routes.b: anybody's packets to 239.1.1.1 have a route in multicast.routes.a already",
                  "11:16: multicast.routes.c.group: 232.1.1.1 is source-specific (RFC 4607): name its source",
                  "12:35: multicast.routes.d.source: 2001:db8::1 and 239.1.1.2 are of two families",
                  "13:33: multicast.routes.e: lan0 is a downstream of proxy 'tv', which sends all that comes in there up and to its members: name a source",
                  "14:33: multicast.routes.f: proxy 'tv' lets in certain sources from eth0 only: name the route's source",
                  "15:62: warning: multicast.routes.g.to: proxy 'tv' sends it to eth0 anyway"], id="multicast-routes"),
    pytest.param("multicast: {routes: {a: {group: 224.0.0.9, from: eth0, to: []}, b: {group: 10.0.0.1, from: e/h, to: [x]}}}\n",
                 ["3:33: multicast.routes.a.group: 224.0.0.9 is of link scope: no router forwards it",
                  "3:60: multicast.routes.a.to: must not be empty",
                  "3:76: multicast.routes.b.group: '10.0.0.1' is no group: expected one such as '239.9.0.1'",
                  "3:92: multicast.routes.b.from: expected the name of an interface such as 'eth0', got 'e/h'"], id="multicast-route-values"),
    pytest.param("zones: {desks: {}}\nlisten: {lan: {address: '127.0.0.1:1', zones: [desk]}}\n" + ORIGINS,
                 ["4:48: listen.lan.zones: unknown zone 'desk' (did you mean 'desks'?)"], id="zone"),
    pytest.param(LISTEN + "classes: {webcast: {}}\norigins: {m: {from: ['http://a.b'], hosts: [h], class: webcst}}\n",
                 ["5:56: origins.m.class: unknown class 'webcst' (did you mean 'webcast'?)"], id="class"),
    pytest.param(LISTEN + "classes: {webcast: {stor: memory}}\norigins: {m: {from: ['http://a.b'], hosts: [h], class: webcast}}\n",
                 ["4:21: unknown key 'stor' in classes.webcast (did you mean 'store'?)"], id="wrong-class-is-known"),
    pytest.param(LISTEN + "origins:\n  m: {from: ['http://a.b'], hosts: [x, h], paths: [/, /live]}\n  n: {from: ['http://a.c'], hosts: [H], paths: [/live/]}\n",
                 ["6:37: origins.n: host 'h' with path '/live' belongs to origin 'm' already (p:5:40)"], id="routes"),
    pytest.param(LISTEN + "origins:\n  m: {from: ['http://a.b'], hosts: [h], paths: [live]}\n  n: {from: ['http://a.c'], hosts: [h]}\n",
                 ["5:49: origins.m.paths: a path starts with '/', got 'live' (did you mean '/live'?)"], id="wrong-path-is-not-the-root"),
    pytest.param("listen:\n  a: {address: '127.0.0.1:80'}\n  b: {address: '127.0.0.1:80'}\n" + ORIGINS,
                 ["5:16: listen.b.address: 127.0.0.1:80 is already taken by listen.a (p:4:16)"], id="addresses"),
    pytest.param("listen:\n  a: {address: '0.0.0.0:80'}\n  b: {address: '127.0.0.1:80'}\n  c: {address: '[::]:80'}\n" + ORIGINS,
                 ["5:16: listen.b.address: 127.0.0.1:80 is already taken by listen.a (p:4:16)"], id="wildcard"),
    pytest.param("listen: {a: {address: '127.0.0.1:0'}, b: {address: '127.0.0.1:0'}}\nadmin: {address: '127.0.0.1:0'}\n" + ORIGINS, [], id="port-0-repeats"),
    pytest.param(LISTEN + "admin: {address: '127.0.0.1:8080'}\n" + ORIGINS,
                 ["4:18: admin.address: 127.0.0.1:8080 is already taken by listen.lan (p:3:25)"], id="admin-address"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b', 'http://127.0.0.1:8080'], hosts: [h]}}\n",
                 ["4:36: origins.m.from: this is our own listen.lan (127.0.0.1:8080): a request would go in a circle"], id="loop"),
    pytest.param("listen: {a: {address: '0.0.0.0:80'}}\norigins: {m: {from: ['http://localhost'], hosts: [h]}}\n",
                 ["4:22: origins.m.from: this is our own listen.a (0.0.0.0:80): a request would go in a circle"], id="loop-by-name"),
    pytest.param("listen: {a: {address: '10.0.0.5:443'}}\norigins: {m: {from: ['https://a.b'], hosts: [h], resolve: [10.0.0.4, 10.0.0.5]}}\n",
                 ["4:70: origins.m.resolve: this is our own listen.a (10.0.0.5:443): a request would go in a circle"], id="loop-by-pin"),
    pytest.param(LISTEN + "admin: {address: '[::1]:81'}\norigins: {m: {from: ['http://[::1]:81'], hosts: [h]}}\n",
                 ["5:22: origins.m.from: this is our own admin ([::1]:81): a request would go in a circle"], id="loop-admin"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://127.0.0.1:8081'], hosts: [h]}}\n", [], id="another-port"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b'], hosts: [h], via: 'http://127.0.0.1:8080'}}\n",
                 ["4:54: origins.m.via: this is our own listen.lan (127.0.0.1:8080): a request would go in a circle"], id="loop-by-proxy"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b'], hosts: [h], via: 'http://p.q:8080', resolve: [127.0.0.1]}}\n",
                 ["4:83: origins.m.resolve: this is our own listen.lan (127.0.0.1:8080): a request would go in a circle"], id="loop-by-proxys-pin"),
    pytest.param(LISTEN + "origins: {m: {from: ['https://a.b', 'http://a.b'], hosts: [h], upstream_host: viewer, via: 'http://p.q:3128'}}\n",
                 ["4:79: origins.m.upstream_host: a proxy sends http requests where their Host says, so the viewer's can't be in them"], id="viewers-host-by-proxy"),
    pytest.param(LISTEN + "origins: {m: {from: ['https://a.b'], hosts: [h], upstream_host: viewer, via: 'http://p.q:3128'}}\n", [], id="viewers-host-in-a-tunnel"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b'], hosts: [h, i], upstream_host: viewer}}\n",
                 ["4:67: origins.m.upstream_host: hosts are not told apart in what is stored: viewer needs one exact host; write an origin for each"], id="viewers-host-of-two"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b'], hosts: ['*.h'], upstream_host: viewer}}\n",
                 ["4:68: origins.m.upstream_host: hosts are not told apart in what is stored: viewer needs one exact host; write an origin for each"], id="viewers-host-of-any"),
    pytest.param(LISTEN + "origins: {m: {from: ['https://a.b'], hosts: [h], via: 'http://u:p@p.q:3128', via_credential: ../x}}\n",
                 ["4:55: origins.m.via: a user or password may not stand in a proxy's URL: name it by via_credential",
                  "4:94: origins.m.via_credential: '../x' is not a name: a letter, then letters, digits, '-' and '_', at most 64 characters"], id="secrets"),
    pytest.param(LISTEN + ORIGINS + "locked: [listn.lan, zones.x.nets, limits, origins.media.form, origins.mdia, '', a..b]\n",
                 ["5:10: locked: 'listn.lan' is no key of a policy (did you mean 'listen'?)",
                  "5:21: warning: locked: 'zones.x.nets' names nothing that is there",
                  "5:43: locked: 'origins.media.form' is no key of a policy (did you mean 'from'?)",
                  "5:63: warning: locked: 'origins.mdia' names nothing that is there (did you mean 'media'?)",
                  "5:77: locked: '' is no key of a policy", "5:81: locked: 'a..b' is no key of a policy"], id="locks"),
    pytest.param("cache: {memory: 5}\nzones: {a: {nets: [x]}}\nlisten: {l: {address: x, zones: [b]}}\norigins: {m: {from: [x], hosts: [h], class: c}, n: {from: ['http://a'], hosts: [h]}}\n",
                 ["3:17: cache.memory: a size needs a unit: KiB, MiB, GiB, kB, MB or GB (did you mean '5MiB'?)",
                  "4:20: zones.a.nets: expected a network such as 10.12.0.0/22, got 'x'",
                  "5:23: listen.l.address: expected ADDRESS:PORT, got 'x'; every IPv4 address is 0.0.0.0:8080, every IPv6 '[::]:8080'",
                  "5:34: listen.l.zones: unknown zone 'b'",
                  "6:22: origins.m.from: expected http://HOST[:PORT] or https://HOST[:PORT], got 'x' (did you mean 'https://x'?)",
                  "6:45: origins.m.class: unknown class 'c'",
                  "6:81: origins.n: host 'h' with path '/' belongs to origin 'm' already (p:6:34)"], id="all-at-once"),
]  # fmt: skip

WARNINGS = [
    pytest.param("zones: {a: {nets: [10.0.0.0/8]}, b: {nets: [10.0.0.0/8]}}\n",
                 ["3:45: warning: zones.b.nets: 10.0.0.0/8 is in zone 'a' already, which wins"], id="same-net"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b'], hosts: [h], override_private: true}}\n",
                 ["4:67: warning: origins.m.override_private: stores playlists and segments that the origin calls no-store or private: "
                  "any viewer may be given them"], id="override"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b'], hosts: [h], profile: generic, override_private: true, forward: [x-a]}}\n",
                 ["4:85: warning: origins.m.override_private: has no effect with profile generic",
                  "4:100: warning: origins.m.forward: has no effect with profile generic, which forwards every field"], id="generic"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://10.0.0.9'], hosts: [h], resolve: [10.0.0.8]}}\n",
                 ["4:63: warning: origins.m.resolve: has no effect without a name in from"], id="pin-of-nothing"),
    pytest.param(LISTEN + "origins: {m: {from: ['https://a.b'], hosts: [h], ca: /no/such.pem}}\n",
                 ["4:54: warning: origins.m.ca: there is no file '/no/such.pem' here"], id="ca"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b'], hosts: [h], client_certificate: c, via_credential: p}}\n",
                 ["4:69: warning: origins.m.client_certificate: has no effect without an https URL in from",
                  "4:88: warning: origins.m.via_credential: has no effect without via"], id="credentials-of-nothing"),
    pytest.param(LISTEN + "origins: {m: {from: ['http://a.b'], hosts: [h], via: 'http://10.0.0.9:3128', resolve: [10.0.0.8]}}\n",
                 ["4:87: warning: origins.m.resolve: has no effect without a name in via"], id="pin-of-no-proxy"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problems"), YAML + KEYS + VALUES + TOGETHER + WARNINGS)
def test_problems(text: str, problems: list[str]) -> None:
    assert checked(HEAD + text)[1] == problems


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["1:1: missing required key 'site'", "1:1: missing required key 'version'"]),
        ("# nothing\n", ["1:1: missing required key 'site'", "1:1: missing required key 'version'"]),
        ("version: 2\nsite: {name: a}\n", ["1:10: version: expected 1, got '2'"]),
        ("version: 1.0\nsite: {name: a}\n", ["1:10: version: expected 1, got '1.0'"]),
        ("version:\nsite: {name: a}\n", ["1:1: version: has no value"]),
        ("version: 1\nsite:\n", ["2:1: missing required key 'name' in site"]),
        ("version: 1\nsite: a\n", ["2:7: site: expected a map, got text"]),
        ("version: 1\nsite: {name: a b}\n", ["2:14: site.name: 'a b' is not a site's name: letters, digits, '.', '-' and '_', at most 64 characters"]),
        ("version: 1\nsite: {nam: a}\n", ["2:1: missing required key 'name' in site", "2:8: unknown key 'nam' in site (did you mean 'name'?)"]),
        ("- a\n", ["1:1: a policy is a map of keys, such as 'version: 1'"]),
        ("text", ["1:1: a policy is a map of keys, such as 'version: 1'"]),
    ],
)  # fmt: skip
def test_problems_of_what_is_required(text: str, problems: list[str]) -> None:
    assert checked(text)[1] == problems


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"version: 1\nsite: {name: \xff}\n", "2:14: not UTF-8"),
        ("version: 1\n".encode("utf-16"), "1:1: not UTF-8"),
        (b"\xef\xbb\xbfversion: 1\nsite: {}\n", "2:1: missing required key 'name' in site"),
    ],
)
def test_encodings(data: bytes, problem: str) -> None:
    assert checked(data)[1] == [problem]


@pytest.mark.parametrize(
    ("text", "place"),
    [("a: [b\n", "4:1: "), ("\tworkers: 2\n", "3:1: "), ("a: 'b\nc: d\n", "5:1: "), ("a: b: c\n", "3:5: ")],
)
def test_a_syntax_error_has_its_place(text: str, place: str) -> None:
    """The words are the YAML parser's: libyaml's differ from PyYAML's own."""
    (problem,) = checked(HEAD + text)[1]
    assert problem.startswith(place)


def test_a_name_like_a_number_stays_text() -> None:
    """YAML 1.1 reads 010 as 8, 1e3 as 1000.0, on as true."""
    for name in ("010", "1e3", "on", "null", "0x1F", "2026-01-01", "1_0", ".5"[1:]):
        policy, problems = checked(f"version: 1\nsite: {{name: {name}}}\n")
        assert policy is not None, problems
        assert policy.site.name == name
    for name in ("on", "yes", "null", "n"):
        policy, problems = checked(HEAD + f"zones: {{{name}: {{}}}}\n")
        assert policy is not None, problems
        assert list(policy.zones) == [name]


def test_every_section_may_be_empty() -> None:
    sections = ("zones", "classes", "cache", "listen", "admin", "origins", "limits", "locked")
    empty, problems = checked(HEAD + "".join(f"{section}:\n" for section in sections))
    assert problems == []
    assert empty == checked(HEAD)[0]


def test_a_policy_that_does_nothing_is_warned_of() -> None:
    policy, problems = check_texts([("p", HEAD.encode())])
    assert policy is not None
    assert [(str(problem), problem.is_warning) for problem in problems] == [
        (f"p:1:1: warning: {text}", True) for text in NOTHING_TO_DO
    ]


def test_a_policy_is_frozen() -> None:
    policy, _ = checked(HEAD)
    assert policy is not None
    with pytest.raises(ValueError, match="frozen"):
        policy.workers = 3  # type: ignore[misc]


def test_load_policy_raises_all_errors_and_no_warning(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nsite: {name: a, b: c}\ncache: {memory: 5}\n")
    with pytest.raises(PolicyError) as error:
        load_policy(file)
    assert [(problem.line, problem.column, problem.is_warning) for problem in error.value.problems] == [
        (2, 17, False),
        (3, 17, False),
    ]
    assert all(problem.file == str(file) for problem in error.value.problems)


def test_files_are_relative_to_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_text("")
    text = HEAD + LISTEN + "origins: {m: {from: ['https://a.b'], hosts: [h], ca: ca.pem}}\n"
    (tmp_path / "p.yaml").write_text(text)
    for path in (tmp_path, tmp_path / "p.yaml"):
        policy, problems = check_policy(path)
        assert problems == ()
        assert policy is not None
        assert policy.origins["m"].ca == ("ca.pem", str(tmp_path / "ca.pem"))
    monkeypatch.chdir(tmp_path)
    policy = load_policy(Path("p.yaml"))
    assert policy.origins["m"].ca == ("ca.pem", str(tmp_path / "ca.pem"))


def test_what_can_not_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder" / "a.yaml").mkdir(parents=True)
    for name, message in [
        ("absent.yaml", "can't be read: No such file or directory"),
        ("empty", "can't be read: no *.yaml in this directory"),
        ("pipe.yaml", "can't be read: not a regular file"),
        ("a\0b", "can't be read: embedded null byte"),
    ]:
        policy, problems = check_policy(tmp_path / name)
        assert policy is None
        assert [str(problem) for problem in problems] == [f"{tmp_path / name}: {message}"]
    policy, problems = check_policy(tmp_path / "folder")
    assert [str(problem) for problem in problems] == [
        f"{tmp_path / 'folder' / 'a.yaml'}: can't be read: not a regular file"
    ]
