"""Keys that verify, each pinned to one algorithm: read from PEM, JWK or text, checked for strength. Reads no file.

The algorithm comes from policy, never from a token (RFC 8725 section 3.1).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from accelerator.protocols.tokens.encoding import decode_base64url, read_json_object
from accelerator.protocols.tokens.verdict import Refused

Algorithm = Literal[
    "ES256", "EdDSA", "RS256", "HS256", "RSA-SHA1", "RSA-SHA256", "ECDSA-SHA1", "ECDSA-SHA256", "HMAC-SHA256", "MD5"
]

RSA_BITS_MIN: Final = 2048
# RFC 7518 section 3.2: a key of the hash's size or larger. A password is none.
HMAC_BYTES_MIN: Final = 32
SECRET_BYTES_MAX: Final = 1024
# nginx's secure_link is MD5 over a secret: its strength is the secret's alone.
LINK_SECRET_BYTES_MIN: Final = 16
_P256_BYTES = 32


class KeyFault(Exception):
    """A key that can't be used; the message says why, and has nothing of the key."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """`material` is a public key of the kind that `algorithm` needs, or a secret's bytes."""

    key_id: str
    algorithm: Algorithm
    material: Any

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is of `message`. ES256: JOSE's form, r and s, 32 bytes each; ECDSA-*: X9.62's."""
        match self.algorithm:
            case "HS256" | "HMAC-SHA256":
                return hmac.compare_digest(hmac.digest(self.material, message, "sha256"), signature)
            case "ES256" if len(signature) != 2 * _P256_BYTES:
                return False
            case "MD5":
                raise AssertionError("secure_link compares digests itself")
        try:
            self._verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def _verify(self, signature: bytes, message: bytes) -> None:
        match self.algorithm:
            case "ES256":
                r, s = (int.from_bytes(half, "big") for half in (signature[:_P256_BYTES], signature[_P256_BYTES:]))
                self.material.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
            case "EdDSA":
                self.material.verify(signature, message)
            case "RS256" | "RSA-SHA256":
                self.material.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
            case "RSA-SHA1":  # CloudFront's canned and custom policies; the URL's holder can't choose what is signed
                self.material.verify(signature, message, padding.PKCS1v15(), hashes.SHA1())
            case "ECDSA-SHA256":
                self.material.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            case "ECDSA-SHA1":
                self.material.verify(signature, message, ec.ECDSA(hashes.SHA1()))


def key_from_pem(name: str, algorithm: Algorithm, data: bytes) -> VerificationKey:
    """A public key (SubjectPublicKeyInfo). Its id is `name`. Raises KeyFault."""
    try:
        material = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFault("expected one public key in PEM") from None
    return VerificationKey(name, algorithm, _checked(algorithm, material))


def key_from_jwk(name: str, algorithm: Algorithm, data: bytes) -> VerificationKey:
    """One JWK (RFC 7517); its `kid` is the key's id, else `name`. Raises KeyFault."""
    try:
        jwk = read_json_object(data)
        key_id = jwk.get("kid", name)
        if not isinstance(key_id, str) or not key_id:
            raise KeyFault("kid is no text")
        if "d" in jwk:
            raise KeyFault("this is a private key: the box needs the public one")
        if jwk.get("alg", algorithm) != algorithm:
            raise KeyFault(f"its alg is not {algorithm}, which policy names")
        if jwk.get("use", "sig") != "sig":
            raise KeyFault("its use is not sig")
        material = _jwk_material(jwk)
    except (Refused, ValueError, KeyError, TypeError, AttributeError):
        raise KeyFault("expected one JWK") from None
    return VerificationKey(key_id, algorithm, _checked(algorithm, material))


def key_from_secret(name: str, algorithm: Algorithm, data: bytes, *, is_hex: bool = False) -> VerificationKey:
    """A secret, one line of text (`is_hex`: of hexadecimal digits). Raises KeyFault."""
    text = data.removesuffix(b"\n").removesuffix(b"\r")
    if not text or len(text) > SECRET_BYTES_MAX or any(byte < 0x20 for byte in text):
        raise KeyFault(f"expected one line of at most {SECRET_BYTES_MAX} bytes")
    if is_hex:
        try:
            text = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            raise KeyFault("expected hexadecimal digits") from None
    return VerificationKey(name, algorithm, _checked(algorithm, text))


def _jwk_material(jwk: Mapping[str, Any]) -> Any:
    def number(member: str) -> int:
        return int.from_bytes(decode_base64url(jwk[member].encode("ascii")), "big")

    kind: tuple[Any, Any] = (jwk["kty"], jwk.get("crv"))
    match kind:
        case "EC", "P-256":
            return ec.EllipticCurvePublicNumbers(number("x"), number("y"), ec.SECP256R1()).public_key()
        case "OKP", "Ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(decode_base64url(jwk["x"].encode("ascii")))
        case "RSA", None:
            return rsa.RSAPublicNumbers(number("e"), number("n")).public_key()
        case "oct", None:
            return decode_base64url(jwk["k"].encode("ascii"))
    raise KeyFault("its type is not EC P-256, OKP Ed25519, RSA or oct")


def _checked(algorithm: Algorithm, material: Any) -> Any:
    match algorithm:
        case "ES256" | "ECDSA-SHA1" | "ECDSA-SHA256":
            if not isinstance(material, ec.EllipticCurvePublicKey) or not isinstance(material.curve, ec.SECP256R1):
                raise KeyFault(f"{algorithm} needs a public key on P-256")
        case "EdDSA":
            if not isinstance(material, ed25519.Ed25519PublicKey):
                raise KeyFault("EdDSA needs an Ed25519 public key")
        case "RS256" | "RSA-SHA1" | "RSA-SHA256":
            if not isinstance(material, rsa.RSAPublicKey) or material.key_size < RSA_BITS_MIN:
                raise KeyFault(f"{algorithm} needs an RSA public key of at least {RSA_BITS_MIN} bits")
        case "HS256" | "HMAC-SHA256":
            if not isinstance(material, bytes) or len(material) < HMAC_BYTES_MIN:
                raise KeyFault(f"{algorithm} needs a secret of at least {HMAC_BYTES_MIN} bytes")
        case "MD5":
            if not isinstance(material, bytes) or len(material) < LINK_SECRET_BYTES_MIN:
                raise KeyFault(f"a secure_link needs a secret of at least {LINK_SECRET_BYTES_MIN} bytes")
    return material
