"""The difference in meaning: a table of pairs, what makes no difference, and agreement with what the daemon does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerator.io.origin import ClientCertificate, OriginSettings, ParentProxy, Upstream
from accelerator.policy import Policy, check_texts
from accelerator.policy.compile import digest_of
from accelerator.policy.diff import WAY_KEYS, diff_policies
from accelerator.policy.shape import keys_of

ROOT = Path(__file__).resolve().parents[2]
BASE: dict[str, Any] = {
    "version": 1,
    "site": {"name": "lyon"},
    "zones": {"desks": {"nets": ["10.1.0.0/16", "10.2.0.0/16"]}, "wifi": {"nets": ["10.3.0.0/16"]}},
    "classes": {"webcast": {}, "library": {}},
    "cache": {"memory": "1GiB"},
    "listen": {"lan": {"address": "127.0.0.1:8080"}},
    "admin": {"address": "127.0.0.1:8081"},
    "origins": {
        "media": {
            "from": ["http://10.0.0.1", "http://10.0.0.2"], "hosts": ["a.example", "b.example"], "class": "webcast",
        },
        "spare": {"from": ["http://10.0.0.3"], "hosts": ["c.example"]},
    },
}  # fmt: skip


def policy(text: str) -> Policy:
    found, problems = check_texts([("policy.yaml", text.encode())])
    assert found is not None, problems
    return found


def changed(*path_and_value: Any) -> Policy:
    """BASE with the value at a path replaced; value ... takes the key out."""
    *path, value = path_and_value
    document = yaml.safe_load(yaml.safe_dump(BASE, sort_keys=False))
    section = document
    for step in path[:-1]:
        section = section.setdefault(step, {})
    if value is ...:
        del section[path[-1]]
    else:
        section[path[-1]] = value
    return policy(yaml.safe_dump(document, sort_keys=False))


OLD = policy(yaml.safe_dump(BASE, sort_keys=False))

# path and new value -> (changes as (key, kind, old, new), words that the effects hold)
CASES: dict[str, tuple[tuple[Any, ...], list[tuple[str, str, Any, Any]], list[str]]] = {
    "another unit of the same size": (("cache", "memory", "1024MiB"), [], []),
    "a default written out": (("limits", "drain", "30s"), [], []),
    "a port that was the default": (("origins", "media", "from", ["http://10.0.0.1:80", "http://10.0.0.2/"]), [], []),
    "hosts in another order": (("origins", "media", "hosts", ["b.example", "a.example"]), [], []),
    "nets in another order": (("zones", "desks", "nets", ["10.2.0.0/16", "10.1.0.0/16"]), [], []),
    "origins in another order": (("origins", dict(reversed(BASE["origins"].items()))), [], []),
    "fail-over in another order": (
        ("origins", "media", "from", ["http://10.0.0.2", "http://10.0.0.1"]),
        [("origins.media.from", "changed", ["http://10.0.0.1:80", "http://10.0.0.2:80"],
          ["http://10.0.0.2:80", "http://10.0.0.1:80"])],
        ["are not reused"],
    ),
    "classes in another order": (
        ("classes", {"library": {}, "webcast": {}}),
        [("classes", "reordered", ["webcast", "library"], ["library", "webcast"])],
        [],
    ),
    "one host less and one more": (
        ("origins", "media", "hosts", ["b.example", "d.example"]),
        [("origins.media.hosts", "removed", "a.example", None), ("origins.media.hosts", "added", None, "d.example")],
        ["leaves 1 of 2 routes (a.example/)"],
    ),
    "a time-out": (
        ("origins", "media", "timeouts", {"connect": "1500ms"}),
        [("origins.media.timeouts.connect", "changed", "3s", "1500ms")],
        ["connections are reused"],
    ),
    "a listener moved": (
        ("listen", "lan", "address", "127.0.0.1:9090"),
        [("listen.lan.address", "changed", "127.0.0.1:8080", "127.0.0.1:9090")],
        ["moves from 127.0.0.1:8080 to 127.0.0.1:9090", "opened anew"],
    ),
    "a listener opened": (
        ("listen", "new", {"address": "127.0.0.1:9090"}),
        [("listen.new", "added", None, {"address": "127.0.0.1:9090"})],
        ["listener 'new' opens on 127.0.0.1:9090"],
    ),
    "a listener for some": (
        ("listen", "lan", "zones", ["desks"]),
        [("listen.lan.zones", "added", None, "desks")],
        ["only viewers of desks are served"],
    ),
    "a listener without TLS that speaks HTTP/2": (
        ("listen", "lan", "http2", "cleartext"),
        [("listen.lan.http2", "changed", "tls", "cleartext")],
        ["new connections may speak HTTP/2 with and without TLS"],
    ),
    "an origin gone": (
        ("origins", "spare", ...),
        [("origins.spare", "removed", {"from": ["http://10.0.0.3:80"], "hosts": ["c.example"]}, None)],
        ["origin 'spare' is gone"],
    ),
    "another class": (
        ("origins", "media", "class", "library"),
        [("origins.media.class", "changed", "webcast", "library")],
        ["is of class library"],
    ),
    "workers": (("workers", 2), [("workers", "changed", "auto", 2)], ["restart"]),
    "memory": (("cache", "memory", "2GiB"), [("cache.memory", "changed", "1GiB", "2GiB")], ["restart"]),
    "no admin": (
        ("admin", ...), [("admin", "removed", {"address": "127.0.0.1:8081", "token": "changes"}, None)], ["restart"]
    ),
    "a limit": (("limits", "drain", "1m"), [("limits.drain", "changed", "30s", "1m")], ["hold at once"]),
    "a multicast proxy": (
        ("multicast", {"proxies": {"tv": {"upstream": "eth0", "downstream": ["lan0"]}}}),
        [("multicast.proxies.tv", "added", None, {"upstream": "eth0", "downstream": ["lan0"]})],
        ["flows that are wanted before and after go on"],
    ),
    "an access log": (
        ("logs", {"access": {"enabled": "true"}}),
        [("logs.access.enabled", "changed", False, True)],
        ["each answer to a viewer is written to disk"],
    ),
    "what is kept of viewers": (
        ("privacy", {"viewer": "truncate", "retention": "7d"}),
        [("privacy.viewer", "changed", "zone", "truncate"), ("privacy.retention", "changed", "30d", "7d")],
        ["logs keep shortened addresses", "privacy.retention has changed"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_says_what_changes_and_what_that_means(name: str) -> None:
    path_and_value, changes, effects = CASES[name]
    found = diff_policies(OLD, changed(*path_and_value))
    assert [(each.key, each.kind, each.old, each.new) for each in found.changes] == changes
    text = "\n".join(effect.text for effect in found.effects)
    for words in effects:
        assert words in text
    if not effects:
        assert text == ""
    assert found.needs_restart is ("restart" in effects)


def test_comments_and_format_make_no_difference() -> None:
    text = "# why\n" + yaml.safe_dump(BASE, default_flow_style=True, sort_keys=False).replace("lyon", "'lyon'")
    assert not diff_policies(OLD, policy(text))


def test_the_complete_policy_differs_from_itself_in_nothing_and_from_another_in_much() -> None:
    whole = policy((ROOT / "config" / "accelerator.yaml").read_text())
    assert not diff_policies(whole, whole)
    there, back = diff_policies(OLD, whole), diff_policies(whole, OLD)
    assert {change.key for change in there.changes} == {change.key for change in back.changes}


def test_what_is_reached_another_way_is_what_the_upstream_client_thinks() -> None:
    """WAY_KEYS decide the words "not reused"; the client decides it by its own settings."""
    base = OriginSettings("media", (Upstream("http", "10.0.0.1", 80),))
    other: dict[str, Any] = {
        "from": {"upstreams": (Upstream("http", "10.0.0.2", 80),)},
        "resolve": {"resolve": ("10.0.0.9",)},
        "via": {"via": ParentProxy("10.0.0.8", 3128)},
        "via_credential": {"via": ParentProxy("10.0.0.8", 3128, b"Basic x")},
        "ca": {"ca_file": "/x.pem"},
        "client_certificate": {"client_certificate": ClientCertificate("a", "b")},
        "connections": {"connections": 2},
        "timeouts": {"connect_timeout_s": 1.0},
    }
    for key, settings_of_key in other.items():
        assert base.reaches_same(OriginSettings(**{**base.__dict__, **settings_of_key})) is (key not in WAY_KEYS)
    origin_keys = set(keys_of(type(OLD.origins["media"])))
    assert set(WAY_KEYS) <= origin_keys


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(CASES)), min_size=1, max_size=2, unique=True))
def test_a_difference_is_a_difference_of_the_digest(names: list[str]) -> None:
    """What the diff calls nothing may differ in the digest by order alone; what it calls something differs always."""
    policies = [OLD, *(changed(*CASES[name][0]) for name in names)]
    for one in policies:
        for other in policies:
            found = diff_policies(one, other)
            assert not (found and digest_of(one) == digest_of(other))
            assert {change.key for change in found.changes} == {
                change.key for change in diff_policies(other, one).changes
            }
