"""Makes tokens for the tests, right ones and wrong ones. The signing is `cryptography`'s or openssl's.
Nothing is verified here."""

from __future__ import annotations

import base64
import hmac
import json
import subprocess
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from accelerator.protocols.tokens.cbor import encode_head

NOW_S = 1_700_000_000.0
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
RSA_KEY = rsa.generate_private_key(65537, 2048)
SECRET = b"a secret that has thirty-two bytes or more"


def pem(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))


def b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(algorithm: str, message: bytes) -> bytes:
    match algorithm:
        case "ES256":
            r, s = decode_dss_signature(EC_KEY.sign(message, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        case "EdDSA":
            return ED_KEY.sign(message)
        case "RS256":
            return RSA_KEY.sign(message, padding.PKCS1v15(), hashes.SHA256())
        case "HS256":
            return hmac.digest(SECRET, message, "sha256")
    return b""


def jwt_of(payload: bytes, algorithm: str = "ES256", header: bytes | None = None, **more: Any) -> bytes:
    """A token whose parts are as given; `more` goes into the header."""
    if header is None:
        header = json.dumps({"alg": algorithm, "kid": "k1", **more}).encode()
    message = b64(header) + b"." + b64(payload)
    return message + b"." + b64(signed(algorithm, message))


def jwt(algorithm: str = "ES256", header: dict[str, Any] | None = None, **claims: Any) -> bytes:
    """A good token, with these claims besides or instead (None: without)."""
    members = {"exp": NOW_S + 600, "iat": NOW_S - 10, "iss": "portal", "aud": "box", "sub": "viewer", **claims}
    kept = {name: value for name, value in members.items() if value is not None}
    return jwt_of(json.dumps(kept).encode(), algorithm, **(header or {}))


def cbor(value: Any) -> bytes:
    """Deterministic enough: maps in the order given."""
    match value:
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return encode_head(0, value) if value >= 0 else encode_head(1, -1 - value)
        case bytes():
            return encode_head(2, len(value)) + value
        case str():
            return encode_head(3, len(value.encode())) + value.encode()
        case list():
            return encode_head(4, len(value)) + b"".join(map(cbor, value))
        case dict():
            return encode_head(5, len(value)) + b"".join(cbor(k) + cbor(v) for k, v in value.items())
    raise TypeError(value)


COSE = {"ES256": -7, "EdDSA": -8, "HS256": 5}


def cat(
    algorithm: str = "ES256", claims: dict[Any, Any] | None = None, protected: dict[Any, Any] | None = None,
    unprotected: dict[Any, Any] | None = None, payload: bytes | None = None, prefix: bytes = b"", suffix: bytes = b"",
    tag: int | None = None,
) -> bytes:  # fmt: skip
    """A good token; claims given as None are left out."""
    members = {1: "portal", 2: "viewer", 3: "box", 4: int(NOW_S) + 600, 6: int(NOW_S) - 10, 310: 1, **(claims or {})}
    body = payload if payload is not None else cbor({k: v for k, v in members.items() if v is not None})
    head = cbor({1: COSE[algorithm], 4: b"k1"} if protected is None else protected)
    context = "MAC0" if algorithm == "HS256" else "Signature1"
    signature = signed(algorithm, cbor([context, head, b"", body]))
    number = tag if tag is not None else (17 if algorithm == "HS256" else 18)
    message = encode_head(6, number) + cbor([head, unprotected or {}, body, signature])
    return b64(prefix + message + suffix)


def openssl(*arguments: str, data: bytes = b"") -> bytes:
    """The openssl command: an implementation of signatures that shares no code of ours."""
    return subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=True).stdout


def openssl_key(folder: Path, kind: str) -> tuple[Path, bytes]:
    """(private key file, public key in PEM); kind is "rsa" or "ec"."""
    path = folder / f"{kind}.pem"
    option = "rsa_keygen_bits:2048" if kind == "rsa" else "ec_paramgen_curve:P-256"
    options = [kind.upper(), "-pkeyopt", option]
    openssl("genpkey", "-algorithm", *options, "-out", str(path))
    return path, openssl("pkey", "-in", str(path), "-pubout")


def cloudfront_text(data: bytes) -> str:
    """base64 as CloudFront's documentation says: `+=/` become `-_~`."""
    return base64.b64encode(data).decode().translate(str.maketrans("+=/", "-_~"))
