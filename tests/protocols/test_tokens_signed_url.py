"""Signed URLs: made by openssl, or by the schemes' published recipes, and every way in which one is refused."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from minting import NOW_S, cloudfront_text, openssl, openssl_key

from accelerator.protocols.tokens.keys import key_from_pem, key_from_secret
from accelerator.protocols.tokens.presented import Places
from accelerator.protocols.tokens.signed_url import CLOUDFRONT_PARAMETERS, SignedUrlRules, verify_signed_url
from accelerator.protocols.tokens.verdict import Reason, Verdict
from accelerator.protocols.tokens.verify import Verifier

NOW = int(NOW_S)
SITE = "https://d111111abcdef8.cloudfront.example"


# -- CloudFront --------------------------------------------------------------------------------------------------------


class CloudFront:
    """Signs as CloudFront's documentation does it, with the openssl command."""

    def __init__(self, folder: Path, kind: str, digest: str) -> None:
        self.key, public = openssl_key(folder, kind)
        self.digest = digest
        algorithm: Any = f"{'RSA' if kind == 'rsa' else 'ECDSA'}-{digest.upper()}"
        self.rules = SignedUrlRules(
            "cloudfront", {"K2JC": key_from_pem("K2JC", algorithm, public)}, Places(CLOUDFRONT_PARAMETERS),
            resource=SITE.encode(),
        )  # fmt: skip
        self._hash = f"&Hash-Algorithm={digest.upper()}" if digest != "sha1" else ""

    def sign(self, text: str) -> str:
        return cloudfront_text(openssl("dgst", f"-{self.digest}", "-sign", str(self.key), data=text.encode()))

    def canned(self, path: str, expires: int = NOW + 600, query: str = "", resource: str = "") -> bytes:
        named = resource or SITE + path + (f"?{query}" if query else "")
        condition = f'{{"DateLessThan":{{"AWS:EpochTime":{expires}}}}}'
        text = f'{{"Statement":[{{"Resource":"{named}","Condition":{condition}}}]}}'
        rest = f"{query}&" if query else ""
        signature = self.sign(text)
        return f"{path}?{rest}Expires={expires}&Signature={signature}&Key-Pair-Id=K2JC{self._hash}".encode()

    def custom(self, path: str, policy: object, query: str = "") -> bytes:
        text = policy if isinstance(policy, str) else json.dumps(policy)
        rest = f"{query}&" if query else ""
        policy_text, signature = cloudfront_text(text.encode()), self.sign(text)
        return f"{path}?{rest}Policy={policy_text}&Signature={signature}&Key-Pair-Id=K2JC{self._hash}".encode()

    def verify(self, target: bytes, fields: Any = ()) -> Verdict:
        return Verifier(self.rules.places, self.rules).verify(target, fields, now_s=NOW_S)


@pytest.fixture(scope="module", params=[("rsa", "sha1"), ("rsa", "sha256"), ("ec", "sha1"), ("ec", "sha256")], ids=str)
def cloudfront(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CloudFront:
    return CloudFront(tmp_path_factory.mktemp("keys"), *request.param)


def policy(resource: str, until: int | None = NOW + 600, **conditions: Any) -> dict[str, Any]:
    condition: dict[str, Any] = dict(conditions)
    if until is not None:
        condition["DateLessThan"] = {"AWS:EpochTime": until}
    return {"Statement": [{"Resource": resource, "Condition": condition}]}


def test_a_canned_policy_is_for_one_url(cloudfront: CloudFront) -> None:
    target = cloudfront.canned("/images/image.jpg", query="size=large")
    verdict = cloudfront.verify(target)
    assert (verdict.reason, verdict.until_s) == (Reason.VALID, NOW + 605)
    assert verdict.scope is not None
    assert verdict.scope.kind == "object"
    assert cloudfront.verify(target.replace(b"image.jpg", b"other.jpg")).reason is Reason.SIGNATURE
    assert cloudfront.verify(target.replace(b"size=large", b"size=small")).reason is Reason.SIGNATURE
    assert cloudfront.verify(target.replace(b"Expires=17", b"Expires=18")).reason is Reason.SIGNATURE


def test_a_custom_policy_is_for_what_it_names(cloudfront: CloudFront) -> None:
    begun = {"DateGreaterThan": {"AWS:EpochTime": NOW - 60}, "IpAddress": {"AWS:SourceIp": "0.0.0.0/0"}}
    target = cloudfront.custom("/live/a/1.ts", policy(f"{SITE}/live/*", **begun))
    verdict = cloudfront.verify(target)
    assert verdict.reason is Reason.VALID
    assert verdict.scope is not None
    assert verdict.scope.covers_directory(b"/live/a/2.ts")
    assert cloudfront.verify(target.replace(b"/live/", b"/vod/")).reason is Reason.SCOPE
    assert cloudfront.verify(cloudfront.custom("/live/1.ts", policy(f"http*://{SITE[8:]}/live/?.ts"))).is_allowed
    by_query = cloudfront.custom("/v.mp4", policy(f"{SITE}/v.mp4?size=large"), query="size=large")
    assert cloudfront.verify(by_query).is_allowed
    assert cloudfront.verify(by_query.replace(b"size=large", b"size=small")).reason is Reason.SCOPE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (policy(f"{SITE}/*", None), Reason.NO_EXPIRY),
        (policy(f"{SITE}/*", NOW - 5), Reason.EXPIRED),
        (policy(f"{SITE}/*", NOW + 10**7), Reason.LIFETIME),
        (policy(f"{SITE}/*", DateGreaterThan={"AWS:EpochTime": NOW + 60}), Reason.NOT_YET),
        (policy(f"{SITE}/*", IpAddress={"AWS:SourceIp": "10.0.0.1/32"}), Reason.CRITICAL),
        (policy(f"{SITE}/*", StringLike={"a": "b"}), Reason.CRITICAL),
        (policy("*"), Reason.SCOPE),
        (policy("https://*/*"), Reason.SCOPE),
        (policy("https://other.example/*"), Reason.SCOPE),
        (policy(f"{SITE}.evil.example/*"), Reason.SCOPE),
        ({"Statement": [policy(f"{SITE}/*")["Statement"][0]] * 2}, Reason.MALFORMED),
        ({"Statement": [{**policy(f"{SITE}/*")["Statement"][0], "Effect": "Deny"}]}, Reason.MALFORMED),
        ({"Statement": []}, Reason.MALFORMED),
        (policy(f"{SITE}/*", DateLessThan={"AWS:EpochTime": True}) | {"x": 1}, Reason.MALFORMED),
        ('{"Statement":[],"Statement":[]}', Reason.DUPLICATE),
        ("x", Reason.MALFORMED),
    ],
)
def test_a_custom_policy_is_refused(cloudfront: CloudFront, text: object, reason: Reason) -> None:
    assert cloudfront.verify(cloudfront.custom("/live/1.ts", text)).reason is reason


def test_cookies_carry_the_same(cloudfront: CloudFront) -> None:
    target = cloudfront.custom("/live/1.ts", policy(f"{SITE}/live/*"))
    path, _, query = target.partition(b"?")
    cookie = b"; ".join(b"CloudFront-" + part for part in query.split(b"&"))
    assert cloudfront.verify(path, [(b"Cookie", b"a=b; " + cookie)]).is_allowed
    assert cloudfront.verify(target, [(b"Cookie", cookie)]).reason is Reason.SEVERAL
    assert cloudfront.verify(path, [(b"Cookie", cookie), (b"Cookie", cookie)]).reason is Reason.SEVERAL


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"Key-Pair-Id=K2JC", b"Key-Pair-Id=K2JD", Reason.KEY),
        (b"Key-Pair-Id=K2JC", b"", Reason.MISSING),
        (b"Signature=", b"Signatur=", Reason.MISSING),
        (b"Signature=", b"Signature=A", Reason.ENCODING),
        (b"Expires=", b"Expires=0", Reason.MALFORMED),
        (b"Expires=", b"Expires=%2B", Reason.MALFORMED),
        (b"Expires=", b"x=1&Expire=", Reason.MISSING),
        (b"Expires=", b"Policy=AAAA&Expires=", Reason.SEVERAL),
        (b"Expires=", b"Expires=1&Expires=", Reason.SEVERAL),
        (b"?", b"?Hash-Algorithm=MD5&", None),
        (b"/a/", b"/a/../a/", Reason.PATH),
        (b"/a/", b"/a%2f", Reason.PATH),
    ],
)
def test_a_canned_url_is_refused(cloudfront: CloudFront, old: bytes, new: bytes, reason: Reason | None) -> None:
    verdict = cloudfront.verify(cloudfront.canned("/a/b.ts").replace(old, new))
    wanted = {reason} if reason is not None else {Reason.ALGORITHM, Reason.SEVERAL}
    assert verdict.reason in wanted


def test_each_bit_of_a_canned_url_counts(cloudfront: CloudFront) -> None:
    """Of the signed part and the signature: bits of a parameter's name make it another parameter, which is missing."""
    target = cloudfront.canned("/a/b.ts")
    for at in range(len(target)):
        changed = bytearray(target)
        changed[at] ^= 1 << (at % 7)
        assert not cloudfront.verify(bytes(changed)).is_allowed, at


# -- Akamai EdgeAuth ---------------------------------------------------------------------------------------------------

AKAMAI_KEY = "52a152a152a152a152a152a152a152a152a152a152a152a152a152a152a152a1"


def edge_auth(*parts: str, url: str = "") -> str:
    """EdgeAuth 2.0's published recipe: the parts joined by `~`, the URL appended where no acl is there, HMAC-SHA256."""
    source = list(parts) + ([f"url={url}"] if url else [])
    digest = hmac.new(bytes.fromhex(AKAMAI_KEY), "~".join(source).encode(), hashlib.sha256).hexdigest()
    return "~".join([*parts, f"hmac={digest}"])


AKAMAI = SignedUrlRules(
    "akamai", {"k": key_from_secret("k", "HMAC-SHA256", AKAMAI_KEY.encode(), is_hex=True)},
    Places((b"hdnts",), (), (b"hdnts",)),
)  # fmt: skip


def akamai(target: str, fields: Any = ()) -> Verdict:
    return Verifier(AKAMAI.places, AKAMAI).verify(target.encode(), fields, now_s=NOW_S)


def test_the_hmac_is_openssls_too() -> None:
    token = edge_auth(f"exp={NOW + 600}", "acl=/live/*")
    text = token.rpartition("~hmac=")[0].encode()
    given = openssl("dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{AKAMAI_KEY}", data=text)
    assert given.split()[-1].decode() == token.rpartition("=")[2]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/*')}", Reason.VALID),
        (f"/live/1.ts?hdnts={edge_auth(f'st={NOW}', f'exp={NOW + 600}', 'acl=/x/*!/live/*', 'data=d')}", Reason.VALID),
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=%2flive%2f*')}", Reason.VALID),
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/*').replace('~', '%7E')}", Reason.VALID),
        (f"/a.mp4?hdnts={edge_auth(f'exp={NOW + 600}', url='/a.mp4')}", Reason.VALID),
        (f"/b.mp4?hdnts={edge_auth(f'exp={NOW + 600}', url='/a.mp4')}", Reason.SIGNATURE),
        (f"/vod/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/*')}", Reason.SCOPE),
        (f"/live/?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/')}", Reason.VALID),
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/')}", Reason.SCOPE),
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=*')}", Reason.CLAIM),
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW - 5}', 'acl=/live/*')}", Reason.EXPIRED),
        (f"/live/1.ts?hdnts={edge_auth(f'st={NOW + 6}', f'exp={NOW + 600}', 'acl=/live/*')}", Reason.NOT_YET),
        (f"/live/1.ts?hdnts={edge_auth('acl=/live/*')}", Reason.NO_EXPIRY),
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW + 10**7}', 'acl=/live/*')}", Reason.LIFETIME),
        (f"/live/1.ts?hdnts={edge_auth('ip=10.0.0.1', f'exp={NOW + 600}', 'acl=/live/*')}", Reason.CRITICAL),
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', f'exp={NOW + 601}', 'acl=/live/*')}", Reason.DUPLICATE),
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/*').upper()}", Reason.MALFORMED),
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/*')}00", Reason.MALFORMED),
        (f"/live/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/*')[:-1]}", Reason.MALFORMED),
        (f"/live/../vod/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/*')}", Reason.PATH),
        (f"/live/%2e%2E/vod/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/*')}", Reason.PATH),
        (f"/live/..;/vod/1.ts?hdnts={edge_auth(f'exp={NOW + 600}', 'acl=/live/*')}", Reason.PATH),
        ("/live/1.ts?hdnts=", Reason.MALFORMED),
        ("/live/1.ts", Reason.MISSING),
        ("/live/1.ts?hdnts=a&hdnts=b", Reason.SEVERAL),
    ],
)
def test_edge_auth(target: str, reason: Reason) -> None:
    assert akamai(target).reason is reason


def test_edge_auth_in_a_cookie() -> None:
    token = edge_auth(f"exp={NOW + 600}", "acl=/live/*").encode()
    assert akamai("/live/1.ts", [(b"Cookie", b"x=y; hdnts=" + token)]).is_allowed


def test_each_bit_of_an_edge_auth_token_counts() -> None:
    token = edge_auth(f"exp={NOW + 600}", "acl=/live/*").encode()
    for at in range(len(token)):
        for bit in range(8):
            changed = bytearray(token)
            changed[at] ^= 1 << bit
            if changed.find(b"&") < 0:
                assert not akamai("/live/1.ts?hdnts=" + changed.decode("latin-1")).is_allowed, (at, bit)


# -- nginx secure_link, and HMAC in the query --------------------------------------------------------------------------

LINK_SECRET = "a secret of 20 bytes"
LINK = SignedUrlRules(
    "secure-link", {"k": key_from_secret("k", "MD5", LINK_SECRET.encode())}, Places((b"md5", b"expires")),
    signed="{expires}{uri} {secret}",
)  # fmt: skip
HMAC_SECRET = "a secret that has thirty-two bytes or more"
HMAC = SignedUrlRules(
    "hmac", {"k": key_from_secret("k", "HMAC-SHA256", HMAC_SECRET.encode())}, Places((b"sig", b"until", b"dir")),
    signed="{path}|{expires}",
)  # fmt: skip


def link(path: str, expires: object = NOW + 600) -> bytes:
    """`echo -n '…' | openssl md5 -binary | openssl base64 | tr +/ -_ | tr -d =`, as nginx's documentation has it."""
    digest = openssl("md5", "-binary", data=f"{expires}{path} {LINK_SECRET}".encode())
    text = openssl("base64", data=digest).decode().strip().replace("+", "-").replace("/", "_").replace("=", "")
    return f"{path}?md5={text}&expires={expires}".encode()


def plain_hmac(path: str, expires: int = NOW + 600, directory: str = "") -> bytes:
    text = f"{directory or path}|{expires}".encode()
    digest = openssl("dgst", "-sha256", "-hmac", HMAC_SECRET, data=text).split()[-1].decode()
    return f"{path}?{f'dir={directory}&' if directory else ''}sig={digest}&until={expires}".encode()


def check(rules: SignedUrlRules, target: bytes) -> Reason:
    return Verifier(rules.places, rules).verify(target, (), now_s=NOW_S).reason


def test_a_secure_link() -> None:
    assert check(LINK, link("/s/link.mp4")) is Reason.VALID
    assert check(LINK, link("/s/link.mp4", NOW - 5)) is Reason.EXPIRED
    assert check(LINK, link("/s/link.mp4", "0" + str(NOW + 600))) is Reason.MALFORMED
    assert check(LINK, link("/s/link.mp4", NOW + 10**6)) is Reason.LIFETIME
    assert check(LINK, link("/s/link.mp4").replace(b"link", b"limk")) is Reason.SIGNATURE
    assert check(LINK, link("/s/link.mp4").replace(b"&", b"=&")) is Reason.SIGNATURE
    assert check(LINK, b"/s/link.mp4?expires=1") is Reason.MISSING
    assert check(LINK, link("/s/link.mp4").replace(b"expires=1", b"expires=%31")) is Reason.MALFORMED
    assert check(HMAC, plain_hmac("/v/a.mp4").replace(b"until=1", b"until=%31")) is Reason.MALFORMED
    decoded = link("/s/a b.mp4").replace(b"/s/a b.mp4", b"/s/a%20b.mp4")
    assert check(LINK, decoded) is Reason.VALID, "nginx signs the decoded path"


def test_a_plain_hmac() -> None:
    assert check(HMAC, plain_hmac("/v/a.mp4")) is Reason.VALID
    assert check(HMAC, plain_hmac("/v/x/a.mp4", directory="/v/")) is Reason.VALID
    assert check(HMAC, plain_hmac("/w/a.mp4", directory="/v/")) is Reason.SCOPE
    assert check(HMAC, plain_hmac("/v/../w/a.mp4", directory="/v/")) is Reason.PATH
    assert check(HMAC, plain_hmac("/v/a.mp4", directory="/v")) is Reason.CLAIM
    assert check(HMAC, plain_hmac("/v/a.mp4").replace(b"sig=", b"dir=/v/&sig=")) is Reason.SIGNATURE
    assert check(HMAC, plain_hmac("/v/a.mp4").replace(b"until=1", b"until=2")) is Reason.SIGNATURE


@pytest.mark.parametrize(("rules", "target"), [(LINK, link("/s/link.mp4")), (HMAC, plain_hmac("/v/a.mp4"))])
def test_each_bit_of_a_link_counts(rules: SignedUrlRules, target: bytes) -> None:
    for at in range(len(target)):
        for bit in range(8):
            changed = bytearray(target)
            changed[at] ^= 1 << bit
            assert not verify_signed_url(bytes(changed), (), rules, now_s=NOW_S).is_allowed, (at, bit)
