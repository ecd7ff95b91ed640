"""`steering` in policies: what is refused and warned of, and that the document's examples are good ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accelerator.policy import check_texts
from accelerator.policy.compile import HOST_EXACT, HOST_PATHS, PathRow, compile_policy
from accelerator.steering.matrix import flow_matrix

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "steering.md").read_text()
BASE = """
version: 1
site: {name: lyon}
listen: {lan: {address: "0.0.0.0:8080"}}
origins:
  media: {from: ["https://media.example"], hosts: [media.example], paths: [/, /live]}
  every: {from: ["https://every.example"], hosts: ["HOSTS"]}
"""


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
def test_the_documents_examples_are_good(text: str) -> None:
    policy, problems = check_texts([("p", text.encode())])
    assert [str(problem) for problem in problems] == []
    assert policy is not None


@pytest.mark.parametrize(
    ("steering", "said"),
    [
        ("{hosts: [media.example]}", "is a host of origins.media already"),
        ("{hosts: ['*.example']}", "expected one name or address"),
        ("{connect: [portal.example]}", "expected HOST:PORT"),
        ("{connect: ['portal.example:0']}", "expected HOST:PORT"),
        ("{proxy: {}}", "address"),
        ("{proxy: {address: 'b:8080', zones: [desk]}}", "unknown zone 'desk'"),
        ("{proxy: {address: 'b:8081'}}", "browsers would go DIRECT"),
        ("{document: {pathways: [a], host: b}}", "clone_of is missing"),
        ("{document: {pathways: [a, a]}}", "stands there twice"),
        ("{document: {pathways: [a], clone_of: a, host: b}}", "made of itself"),
        ("{document: {pathways: [a], reload: ftp://x}}", "http or https URL"),
    ],
)
def test_what_is_wrong_is_said(steering: str, said: str) -> None:
    _, problems = check_texts([("p", (BASE.replace("HOSTS", "every.example") + f"steering: {steering}\n").encode())])
    assert any(said in str(problem) for problem in problems), [str(problem) for problem in problems]


def test_a_prefix_beside_an_origin_of_every_host_needs_the_boxs_names() -> None:
    text = BASE.replace("HOSTS", "*") + "steering: {prefix: true}\n"
    assert any("steering.hosts must say" in str(problem) for problem in check_texts([("p", text.encode())])[1])


def test_prefixes_are_rows_of_the_boxs_own_names() -> None:
    text = BASE.replace("HOSTS", "every.example")
    policy, _ = check_texts([("p", (text + "steering: {prefix: true, hosts: [box.example, '::1']}\n").encode())])
    assert policy is not None
    rows = {row.pattern: row for row in compile_policy(policy).hosts}
    assert rows["box.example"].kind == rows["[::1]"].kind == HOST_EXACT
    assert rows["box.example"].paths == (
        PathRow("/media/live", 0, 6), PathRow("/every", 1, 6), PathRow("/media", 0, 6),
    )  # fmt: skip
    policy, _ = check_texts([("p", (text + "steering: {prefix: true}\n").encode())])
    assert policy is not None
    assert compile_policy(policy).hosts[-1].kind == HOST_PATHS


def test_the_flow_matrix_has_what_is_intercepted_both_ways() -> None:
    intercept = "{interfaces: [lan0], destinations: ['fd00::/64'], ports: [80, 8080]}"
    text = f"{BASE.replace('HOSTS', '*')}steering: {{intercept: {intercept}}}"
    policy, problems = check_texts([("p", text.encode())])
    assert policy is not None, problems
    rows = [row for row in flow_matrix(policy) if row.destination == "fd00::/64"]
    assert [(row.source, row.port, row.direction) for row in rows] == [
        ("viewers", port, way) for port in ("80", "8080") for way in ("in", "out")
    ]
    assert "lan0" in rows[0].why


def test_every_steered_example_is_shown_by_the_document_and_every_lane_has_one() -> None:
    """That they pass the check is test_policy_documents.py's."""
    lanes = set()
    for path in sorted((ROOT / "config" / "examples").glob("*.yaml")):
        policy, _ = check_texts([(path.name, path.read_bytes())])
        assert policy is not None
        steering = policy.steering
        found = {
            "document": steering.document, "prefix": steering.prefix, "proxy": steering.proxy,
            "connect": steering.connect, "intercept": steering.intercept,
        }  # fmt: skip
        used = {lane for lane, is_used in found.items() if is_used}
        lanes |= used
        assert not used or f"`config/examples/{path.name}`" in DOCUMENT, path.name
    assert lanes == {"document", "prefix", "proxy", "connect", "intercept"}
