"""JWT: the RFCs' own vectors, every reason to refuse, and each single-bit change of a good token."""

from __future__ import annotations

import json
from typing import Any

import pytest
from minting import EC_KEY, ED_KEY, NOW_S, RSA_KEY, SECRET, b64, jwt, jwt_of, pem, signed

from accelerator.protocols.tokens.claims import ClaimRules
from accelerator.protocols.tokens.jwt import JwtRules, verify_jwt
from accelerator.protocols.tokens.keys import KeyFault, VerificationKey, key_from_jwk, key_from_pem, key_from_secret
from accelerator.protocols.tokens.scope import Scope
from accelerator.protocols.tokens.verdict import Reason

CLAIMS = ClaimRules("portal", "box", 3600.0, 5.0)
KEYS: dict[str, VerificationKey] = {
    "ES256": key_from_pem("k1", "ES256", pem(EC_KEY)),
    "EdDSA": key_from_pem("k1", "EdDSA", pem(ED_KEY)),
    "RS256": key_from_pem("k1", "RS256", pem(RSA_KEY)),
    "HS256": key_from_secret("k1", "HS256", SECRET + b"\n"),
}


def rules(algorithm: str = "ES256", **changes: Any) -> JwtRules:
    return JwtRules(**{"algorithm": algorithm, "keys": {"k1": KEYS[algorithm]}, "claims": CLAIMS, **changes})


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_good_token_is_allowed(algorithm: str) -> None:
    verdict = verify_jwt(jwt(algorithm), rules(algorithm), now_s=NOW_S)
    assert (verdict.is_allowed, verdict.reason) == (True, Reason.VALID)
    assert verdict.until_s == NOW_S + 605
    assert len(verdict.subject) == 8
    assert verdict.scope is not None
    assert verdict.scope.covers(b"/any/path")


def test_the_vector_of_rfc_7515_appendix_a_3() -> None:
    """ES256; its payload ends with exp 1300819380 and says iss joe."""
    jwk = (
        b'{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",'
        b'"y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}'
    )
    token = (
        b"eyJhbGciOiJFUzI1NiJ9."
        b"eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ."
        b"DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
    )
    one = rules(keys={"x": key_from_jwk("x", "ES256", jwk)}, claims=ClaimRules("joe"))
    assert verify_jwt(token, one, now_s=1300819000).is_allowed
    assert verify_jwt(token, one, now_s=1300819390).reason is Reason.EXPIRED


def test_the_vector_of_rfc_7515_appendix_a_2() -> None:
    """RS256 with the same payload."""
    jwk = (
        b'{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL'
        b"-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTB"
        b"EMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9"
        b'gb54h4FRWyuXpoQ","e":"AQAB"}'
    )
    token = (
        b"eyJhbGciOiJSUzI1NiJ9."
        b"eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ."
        b"cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dn"
        b"ZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC"
        b"-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
    )
    key = key_from_jwk("x", "RS256", jwk)
    assert verify_jwt(token, rules("RS256", keys={"x": key}, claims=ClaimRules("joe")), now_s=1300819000).is_allowed


def test_the_vector_of_rfc_8037_appendix_a_4() -> None:
    """EdDSA: the signature is good, and the payload is no claims set."""
    jwk = b'{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}'
    token = (
        b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
        b"hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    )
    key = key_from_jwk("x", "EdDSA", jwk)
    message, _, signature = token.rpartition(b".")
    assert key.verifies(b64_decoded(signature), message)
    assert verify_jwt(token, rules("EdDSA", keys={"x": key}), now_s=NOW_S).reason is Reason.MALFORMED


def b64_decoded(text: bytes) -> bytes:
    import base64

    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def head(**members: Any) -> bytes:
    return json.dumps(members).encode()


GOOD = json.dumps({"exp": NOW_S + 600, "iss": "portal", "aud": "box"}).encode()
_, _BODY, _SIGNATURE = jwt().split(b".")
REFUSED = {
    "empty": (b"", Reason.MALFORMED),
    "two parts": (b"a.b", Reason.MALFORMED),
    "four parts": (jwt() + b".", Reason.MALFORMED),
    "huge": (jwt(pad="x" * 5000), Reason.TOO_LONG),
    "alg none": (jwt_of(GOOD, "none"), Reason.ALGORITHM),
    "alg None": (jwt_of(GOOD, "None"), Reason.ALGORITHM),
    "alg none without signature": (b64(head(alg="none")) + b"." + b64(GOOD) + b".", Reason.ALGORITHM),
    "alg missing": (jwt_of(GOOD, header=head(kid="k1")), Reason.ALGORITHM),
    "alg a list": (jwt_of(GOOD, header=head(alg=["ES256"])), Reason.ALGORITHM),
    "alg in lower case": (jwt_of(GOOD, header=head(alg="es256")), Reason.ALGORITHM),
    "alg RS256 where ES256 is pinned": (jwt("RS256"), Reason.ALGORITHM),
    "jwk": (jwt(header={"jwk": {"kty": "EC"}}), Reason.EMBEDDED_KEY),
    "jku": (jwt(header={"jku": "https://evil.example/k"}), Reason.EMBEDDED_KEY),
    "x5u": (jwt(header={"x5u": "https://evil.example/k"}), Reason.EMBEDDED_KEY),
    "x5c": (jwt(header={"x5c": []}), Reason.EMBEDDED_KEY),
    "crit": (jwt(header={"crit": ["exp"]}), Reason.CRITICAL),
    "b64 false": (jwt(header={"b64": False}), Reason.CRITICAL),
    "zip": (jwt(header={"zip": "DEF"}), Reason.CRITICAL),
    "nested": (jwt(header={"cty": "JWT"}), Reason.CRITICAL),
    "typ of something else": (jwt(header={"typ": "dpop+jwt"}), Reason.MALFORMED),
    "kid unknown": (jwt(header={"kid": "k2"}), Reason.KEY),
    "kid a path": (jwt(header={"kid": "../../dev/null"}), Reason.KEY),
    "kid a number": (jwt(header={"kid": 1}), Reason.KEY),
    "alg twice": (jwt_of(GOOD, header=b'{"alg":"none","kid":"k1","alg":"ES256"}'), Reason.DUPLICATE),
    "exp twice": (jwt_of(GOOD[:-1] + b', "exp": 1}'), Reason.DUPLICATE),
    "member twice, deep": (jwt_of(GOOD[:-1] + b', "a": [{"b": 1, "b": 2}]}'), Reason.DUPLICATE),
    "no JSON": (jwt_of(b"exp=1"), Reason.MALFORMED),
    "a JSON list": (jwt_of(b"[1]"), Reason.MALFORMED),
    "JSON and more": (jwt_of(GOOD + b"x"), Reason.MALFORMED),
    "JSON in UTF-16": (jwt_of(GOOD.decode().encode("utf-16")), Reason.MALFORMED),
    "JSON too deep": (jwt_of(b'{"a":' + b"[" * 1200 + b"]" * 1200 + b"}"), Reason.MALFORMED),
    "NaN": (jwt_of(b'{"exp": NaN}'), Reason.MALFORMED),
    "infinite": (jwt_of(b'{"exp": 1e999}'), Reason.CLAIM),
    "padding": (jwt().replace(_SIGNATURE, b"") + _SIGNATURE + b"==", Reason.ENCODING),
    "base64, not base64url": (jwt_of(GOOD).rpartition(b".")[0] + b"." + b"+" * 86, Reason.ENCODING),
    "a line break": (jwt() + b"\n", Reason.ENCODING),
    "bytes after": (jwt() + b"AAAA", Reason.SIGNATURE),
    "other signature": (jwt().rpartition(b".")[0] + b"." + b64(bytes(64)), Reason.SIGNATURE),
    "no signature": (jwt().rpartition(b".")[0] + b".", Reason.SIGNATURE),
    "signature of another token": (jwt(sub="x").rpartition(b".")[0] + b"." + _SIGNATURE, Reason.SIGNATURE),
    "no exp": (jwt(exp=None), Reason.NO_EXPIRY),
    "exp a text": (jwt(exp="1700000600"), Reason.CLAIM),
    "exp true": (jwt(exp=True), Reason.CLAIM),
    "exp negative": (jwt(exp=-1), Reason.CLAIM),
    "exp a year of 100,000": (jwt(exp=10**13), Reason.CLAIM),
    "expired": (jwt(exp=NOW_S - 5), Reason.EXPIRED),
    "not yet": (jwt(nbf=NOW_S + 6), Reason.NOT_YET),
    "made in the future": (jwt(iat=NOW_S + 6), Reason.NOT_YET),
    "valid for too long": (jwt(exp=NOW_S + 3600), Reason.LIFETIME),
    "valid for too long, no iat": (jwt(exp=NOW_S + 3601, iat=None), Reason.LIFETIME),
    "other issuer": (jwt(iss="evil"), Reason.ISSUER),
    "no issuer": (jwt(iss=None), Reason.ISSUER),
    "other audience": (jwt(aud="other"), Reason.AUDIENCE),
    "audience among others, not ours": (jwt(aud=["a", "b"]), Reason.AUDIENCE),
    "audience of numbers": (jwt(aud=[1]), Reason.CLAIM),
    "no audience": (jwt(aud=None), Reason.AUDIENCE),
    "subject a number": (jwt(sub=5), Reason.CLAIM),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_token_is_refused(name: str) -> None:
    token, reason = REFUSED[name]
    verdict = verify_jwt(token, rules(), now_s=NOW_S)
    assert (verdict.is_allowed, verdict.reason, verdict.scope) == (False, reason, None)


def test_a_public_key_is_no_hmac_secret() -> None:
    """Algorithm confusion: HS256 with the RSA public key as the secret, where RS256 is pinned."""
    import hmac

    message = b64(head(alg="HS256", kid="k1")) + b"." + b64(GOOD)
    token = message + b"." + b64(hmac.digest(pem(RSA_KEY), message, "sha256"))
    assert verify_jwt(token, rules("RS256"), now_s=NOW_S).reason is Reason.ALGORITHM
    with pytest.raises(KeyFault):
        key_from_secret("k1", "HS256", pem(RSA_KEY))


def test_clocks_may_differ_by_the_leeway_and_no_more() -> None:
    assert verify_jwt(jwt(exp=NOW_S - 4), rules(), now_s=NOW_S).is_allowed
    assert verify_jwt(jwt(nbf=NOW_S + 5, iat=None), rules(), now_s=NOW_S).is_allowed


def test_an_audience_among_others_is_ours() -> None:
    assert verify_jwt(jwt(aud=["other", "box"]), rules(), now_s=NOW_S).is_allowed


def test_a_token_for_somebody_is_not_for_a_box_without_audience() -> None:
    nobody = rules(claims=ClaimRules("portal", None, 3600.0))
    assert verify_jwt(jwt(), nobody, now_s=NOW_S).reason is Reason.AUDIENCE
    assert verify_jwt(jwt(aud=None), nobody, now_s=NOW_S).is_allowed


@pytest.mark.parametrize(
    ("claim", "scope"),
    [
        ("/live/a.m3u8", Scope("object", (b"/live/a.m3u8",))),
        (["/live/", "/vod/"], Scope("directory", (b"/live/", b"/vod/"))),
        ("/live/*.ts", Scope("acl", (b"/live/*.ts",))),
        (["/live/", "/a.mpd"], Scope("acl", (b"/live/*", b"/a.mpd"))),
        (None, None),
        ([], None),
        ("live/", None),
        ("/live/../", None),
        ([1], None),
        ("/lïve/", None),
        (["/x"] * 33, None),
    ],
)
def test_a_claim_says_which_paths(claim: object, scope: Scope | None) -> None:
    verdict = verify_jwt(jwt(path=claim), rules(path_claim="path"), now_s=NOW_S)
    assert verdict.scope == scope
    assert verdict.reason is (Reason.VALID if scope else Reason.CLAIM)


@pytest.mark.parametrize("algorithm", KEYS)
def test_each_bit_counts(algorithm: str) -> None:
    """No single-bit change of a good token is accepted, whatever part it hits."""
    token, wanted = jwt(algorithm), rules(algorithm)
    for at in range(len(token)):
        for bit in range(8):
            changed = bytearray(token)
            changed[at] ^= 1 << bit
            assert not verify_jwt(bytes(changed), wanted, now_s=NOW_S).is_allowed, (at, bit)


@pytest.mark.parametrize(
    ("algorithm", "data"),
    [
        ("ES256", pem(RSA_KEY)),
        ("EdDSA", pem(EC_KEY)),
        ("RS256", pem(ED_KEY)),
        ("ES256", b"no key"),
        ("ES256", b""),
    ],
)
def test_a_key_of_another_kind_is_refused(algorithm: Any, data: bytes) -> None:
    with pytest.raises(KeyFault):
        key_from_pem("k", algorithm, data)


@pytest.mark.parametrize(
    "jwk",
    [
        b"{}",
        b"[]",
        b'{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ"}',
        b'{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":1}',
        b'{"kty":"OKP","crv":"Ed25519","x":"AQ"}',
        b'{"kty":"oct","k":"c2hvcnQ"}',
        b'{"kty":"OKP","crv":"Ed25519","d":"AQ","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}',
        b'{"kty":"OKP","crv":"Ed25519","alg":"ES256","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}',
        b'{"kty":"OKP","crv":"Ed25519","use":"enc","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}',
        b'{"kty":"OKP","crv":"Ed25519","kid":5,"x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}',
        b'{"kty":"OKP","kty":"EC","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}',
    ],
)
def test_a_bad_jwk_is_refused(jwk: bytes) -> None:
    for algorithm in ("ES256", "EdDSA", "HS256"):
        with pytest.raises(KeyFault):
            key_from_jwk("k", algorithm, jwk)  # type: ignore[arg-type]


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(KeyFault):
        key_from_secret("k", "HS256", b"x" * 31)
    assert key_from_secret("k", "HS256", b"x" * 32).material == b"x" * 32
    assert signed("HS256", b"m") == signed("HS256", b"m")
