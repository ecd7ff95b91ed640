"""Each key's example in docs/policy.md, put in its place in the default policy, passes the check: copies work."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from test_policy_documents import DEFAULT, KEYS, document_rows

from accelerator.policy import check_texts

# Rows whose example is a whole section further down, with a test of its own.
ELSEWHERE = {"origins", "origins.NAME.credential"}
JWT = {"scheme": "jwt", "algorithm": "ES256", "keys": ["k"], "issuer": "portal"}
CREDENTIAL = {"parameters": ["token"], "verify": JWT}
SIGNED = {"scheme": "secure-link", "keys": ["k"], "signed": "{expires}{uri} {secret}"}
LINK = {"parameters": ["md5", "expires"], "verify": SIGNED}
CLOUDFRONT = {
    "verify": {"scheme": "cloudfront", "algorithm": "RSA-SHA1", "keys": ["K"], "resource": "https://d.example"}
}
SRT = {"relays": {"hall": {"from": ["srt://10.9.0.1:9000"], "sources": ["10.9.0.0/16"]}}}
ASK = {"parameters": ["s"], "ask": "origin"}
# What has to stand beside a key for its example to mean anything.
BESIDE: dict[str, dict[str, Any]] = {
    "origins.NAME.credential.verify": {"origins.NAME.credential": {"parameters": ["token"]}},
    "origins.NAME.credential.ask": {"origins.NAME.credential": {"parameters": ["s"]}},
    "origins.NAME.credential.when_unreachable": {"origins.NAME.credential": ASK},
    "origins.NAME.credential.verify.resource": {"origins.NAME.credential": CLOUDFRONT},
    "origins.NAME.credential.verify.signed": {"origins.NAME.credential": LINK},
    "origins.NAME.credential": {"origins.NAME.credential": CREDENTIAL},
    "origins.NAME.via_credential": {"origins.NAME.via": "http://proxy.corp.example:3128"},
    "listen.NAME.zones": {"zones": {"desks": {"nets": ["10.12.0.0/22"]}}},
    "steering.intercept.destinations": {"steering.intercept": {"interfaces": ["lan0"]}},
    "steering.intercept.interfaces": {"steering.intercept": {"destinations": ["10.0.0.0/24"]}},
    "steering.intercept.port": {"steering.intercept": {"interfaces": ["lan0"], "destinations": ["10.0.0.0/24"]}},
    "steering.intercept.ports": {"steering.intercept": {"interfaces": ["lan0"], "destinations": ["10.0.0.0/24"]}},
    "steering.document.clone_of": {"steering.document": {"pathways": ["lyon", "cdn"], "host": "media.example"}},
    "steering.document.host": {"steering.document": {"pathways": ["lyon", "cdn"], "clone_of": "cdn"}},
    "steering.document.reload": {"steering.document": {"pathways": ["lyon", "cdn"]}},
    "steering.document.ttl": {"steering.document": {"pathways": ["lyon", "cdn"]}},
    "steering.proxy.zones": {
        "steering.proxy": {"address": "box.example:8080"}, "zones": {"desks": {"nets": ["10.12.0.0/22"]}},
    },
    "relays.NAME.interfaces": {"relays": {"hall": {"from": ["rtp://239.1.1.1:5004", "rtp://239.1.1.2:5004"]}}},
    **{f"relays.NAME.connection{key}": SRT for key in ("", ".mode", ".latency", ".passphrase", ".stream_id")},
    **{f"relays.NAME.retransmit.{key}": {"relays.NAME.retransmit": {"from": "10.1.0.1:5005"}}
       for key in ("payload_type", "port")},
    "relays.NAME.connection.profile": {"relays": {"hall": {"from": ["rist://10.9.0.1:9000"]}}},
    "relays.NAME.to.unicast": {"relays.NAME.to": [{}]},
    "relays.NAME.to.http": {"relays.NAME.to": [{}]},
    "relays.NAME.to.zones": {
        "relays.NAME.to": [{"unicast": ["10.12.0.7:5004"]}],
        "zones": {"desks": {"nets": ["10.12.0.0/22"]}},
    },
    "origins.NAME.link_for": {"links.NAME.gateway": "10.0.0.1", "origins.NAME.link": "main"},
    "links.NAME.shape": {"links.NAME.down": "100Mbit/s"},
    "links.NAME.shape.ingress": {"links.NAME.down": "100Mbit/s"},
    "links.NAME.shape.lan": {"links.NAME.down": "100Mbit/s"},
    "links.NAME.shape.egress": {"links.NAME.up": "20Mbit/s"},
    "classes.NAME.pin": {"cache.disk": {"size": "20GiB"}, "classes.NAME.store": "disk", "classes.NAME.quota": "50%"},
    "origins.NAME.class": {"classes": {"webcast": {"store": "memory"}}},
}


def default() -> dict[str, Any]:
    return dict(yaml.safe_load(DEFAULT.read_text()))


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Into the first entry of each map of names on the way; sections that aren't there are made."""
    *above, last = path.split(".")
    node = tree
    for step in above:
        name = next(iter(node), "one") if step == "NAME" else step
        if not isinstance(node.get(name), dict | list):
            node[name] = {}
        node = node[name]
        node = node[0] if isinstance(node, list) else node
    node[last] = value


def with_example(path: str, example: str) -> dict[str, Any]:
    tree = default()
    section = path.removesuffix(".NAME")
    for prefix in ("origins.NAME.credential.", "origins.NAME.credential.verify."):
        if path.startswith(prefix):
            put(tree, "origins.NAME.credential", copy.deepcopy(CREDENTIAL))
    for beside, value in BESIDE.get(path, {}).items():
        put(tree, beside, copy.deepcopy(value))
    put(tree, section, yaml.load(example, Loader=yaml.BaseLoader))
    return tree


@pytest.mark.parametrize("path", sorted(set(KEYS) - ELSEWHERE))
def test_the_example_passes_the_check(path: str) -> None:
    cell = document_rows()[path][2]
    assert cell.startswith("`"), f"{path}: the example is no value: {cell}"
    assert cell.endswith("`"), f"{path}: the example is no value: {cell}"
    text = yaml.safe_dump(with_example(path, cell.strip("`")), sort_keys=False)
    policy, problems = check_texts([("p", text.encode())])
    assert [str(problem) for problem in problems if not problem.is_warning] == []
    assert policy is not None


@pytest.mark.parametrize("path", sorted(set(KEYS) - ELSEWHERE))
def test_the_example_says_something_else_than_the_default(path: str) -> None:
    _, default_cell, example, _ = document_rows()[path]
    assert example != default_cell, f"{path}: the example shows the default"
