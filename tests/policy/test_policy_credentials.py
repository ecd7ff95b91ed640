"""The `credential` section: what it compiles to, and what can't be combined."""

from __future__ import annotations

import pytest

from accelerator.policy import check_texts, compile_policy
from accelerator.policy.compile import OriginRow
from accelerator.policy.diff import diff_policies
from accelerator.policy.model import Policy

TEXT = (
    "version: 1\nsite: {name: a}\nlisten: {l: {address: '127.0.0.1:1'}}\n"
    "origins:\n  m:\n    from: ['https://x']\n    hosts: [h]\n"
)
JWT = "verify: {scheme: jwt, algorithm: ES256, keys: [k], issuer: i}"


def policy_of(credential: str) -> tuple[Policy | None, list[str]]:
    text = TEXT + (f"    credential: {{{credential}}}\n" if credential else "")
    policy, problems = check_texts([("p", text.encode())])
    return policy, [str(problem) for problem in problems]


def row_of(credential: str) -> OriginRow:
    policy, problems = policy_of(credential)
    assert problems == []
    assert policy is not None
    return compile_policy(policy).origins[0]


def test_a_rule_compiles_to_places_and_a_number() -> None:
    row = row_of(f"parameters: [token], headers: [Authorization], cookies: [t], {JWT}")
    assert (row.credential_parameters, row.credential_headers, row.credential_cookies) == (
        ("token",), ("authorization",), ("t",),
    )  # fmt: skip
    assert row.credential_rule > 0
    other = row_of(f"parameters: [token], headers: [Authorization], cookies: [t], authorise_for: 2m, {JWT}")
    assert other.credential_rule != row.credential_rule
    assert row_of("").credential_rule == 0


def test_cloudfront_has_its_own_names() -> None:
    row = row_of("verify: {scheme: cloudfront, algorithm: RSA-SHA1, keys: [k], resource: 'https://d.example'}")
    assert "Key-Pair-Id" in row.credential_parameters
    assert "CloudFront-Policy" in row.credential_cookies


@pytest.mark.parametrize(
    "credential",
    [
        f"cookies: [s], {JWT}",
        "cookies: [s], ask: origin, when_unreachable: last-yes, refusal: 401",
        "parameters: [t], verify: {scheme: akamai, keys: [k]}",
        "parameters: [md5, expires], verify: {scheme: secure-link, keys: [k], signed: '{expires}{uri} {secret}'}",
        "parameters: [s, e, d], verify: {scheme: hmac, keys: [k], signed: '{path}|{expires}'}",
        "headers: [X-Token], verify: {scheme: cat, algorithm: EdDSA, keys: [k], issuer: i, audience: a}",
    ],
)
def test_what_goes_together(credential: str) -> None:
    assert row_of(credential).credential_rule


@pytest.mark.parametrize(
    ("credential", "word"),
    [
        ("parameters: [t]", "either verify or ask"),
        (f"parameters: [t], ask: origin, {JWT}", "either verify or ask"),
        ("ask: origin", "needs parameters, headers or cookies"),
        (JWT, "needs parameters, headers or cookies"),
        ("parameters: [t, t], ask: origin", "twice"),
        ("parameters: ['a b'], ask: origin", "expected a parameter"),
        ("headers: [Cookie], ask: origin", "name the cookies"),
        ("headers: [Range], ask: origin", "never forwarded"),
        ("parameters: [t], ask: origin, refusal: 402", "must be 401 or 403"),
        ("parameters: [t], ask: origin, refusal: 404", "must be from 401"),
        (f"parameters: [t], when_unreachable: last-yes, {JWT}", "has no effect with verify"),
        ("parameters: [t], verify: {scheme: jwt, keys: [k], issuer: i}", "needs algorithm"),
        ("parameters: [t], verify: {scheme: jwt, keys: [k], algorithm: ES256}", "needs issuer"),
        ("parameters: [t], verify: {scheme: jwt, keys: [], algorithm: ES256, issuer: i}", "keys"),
        ("parameters: [t], verify: {scheme: jwt, keys: [k], algorithm: none, issuer: i}", "algorithm"),
        ("parameters: [t], verify: {scheme: jwt, keys: [k], algorithm: RSA-SHA1, issuer: i}", "scheme jwt has"),
        ("parameters: [t], verify: {scheme: cat, keys: [k], algorithm: ES256, issuer: i, path_claim: p}", "no effect"),
        ("verify: {scheme: cloudfront, keys: [k], algorithm: RSA-SHA1}", "needs resource"),
        ("verify: {scheme: cloudfront, keys: [k], algorithm: RSA-SHA1, resource: 'https://d/x'}", "without path"),
        ("parameters: [t], verify: {scheme: cloudfront, keys: [k], algorithm: RSA-SHA1, resource: 'https://d'}", "own"),
        ("parameters: [a], verify: {scheme: hmac, keys: [k], signed: '{path}{expires}'}", "in order"),
        ("parameters: [a, b], verify: {scheme: hmac, keys: [k], signed: '{path}'}", "needs {expires}"),
        ("parameters: [a, b], verify: {scheme: hmac, keys: [k], signed: '{expires}'}", "{path} or {uri}"),
        ("parameters: [a, b], verify: {scheme: hmac, keys: [k], signed: '{path}{expires}{secret}'}", "is for secure"),
        ("parameters: [a, b], verify: {scheme: secure-link, keys: [k], signed: '{uri}{expires}'}", "needs {secret}"),
        ("parameters: [a, b], verify: {scheme: hmac, keys: [k], signed: '{path}{expires}{ip}'}", "placeholders are"),
        ("parameters: [a, b], verify: {scheme: hmac, keys: [k], signed: '{path}{expires}}'}", "placeholders are"),
        ("cookies: [a], verify: {scheme: hmac, keys: [k], signed: '{path}{expires}'}", "for parameters only"),
        ("parameters: [t], verify: {scheme: akamai, keys: [k], issuer: i}", "no effect"),
    ],
)
def test_what_does_not(credential: str, word: str) -> None:
    _, problems = policy_of(credential)
    assert any(word in problem for problem in problems), problems


def test_a_diff_says_what_it_means() -> None:
    before, after = policy_of("")[0], policy_of(f"parameters: [t], {JWT}")[0]
    assert before is not None
    assert after is not None
    texts = [effect.text for effect in diff_policies(before, after).effects]
    assert any("judged anew" in text for text in texts)
    assert any("keys change" in text for text in texts)
    assert any("no credential is judged" in effect.text for effect in diff_policies(after, before).effects)
