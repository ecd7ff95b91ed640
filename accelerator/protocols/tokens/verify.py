"""One origin's verification, whatever its scheme: the request in, a verdict out. Scheme rules: their files."""

from __future__ import annotations

from dataclasses import dataclass

from accelerator.protocols.fields import Fields
from accelerator.protocols.tokens.cta5007 import CatRules, verify_cat
from accelerator.protocols.tokens.jwt import JwtRules, verify_jwt
from accelerator.protocols.tokens.presented import Places, one_token, split_target
from accelerator.protocols.tokens.scope import is_ambiguous
from accelerator.protocols.tokens.signed_url import SignedUrlRules, verify_signed_url
from accelerator.protocols.tokens.verdict import Reason, Refused, Verdict, refusal

SchemeRules = JwtRules | CatRules | SignedUrlRules


@dataclass(frozen=True, slots=True)
class Verifier:
    """Where the credential is, and by which rules it is verified."""

    places: Places
    rules: SchemeRules

    def verify(self, target: bytes, fields: Fields, *, now_s: float, method: bytes = b"GET") -> Verdict:
        """Verdict on a request for `target` (origin-form); a no where the scope is not of its path. Raises nothing."""
        path, _ = split_target(target)
        if is_ambiguous(path):
            return refusal(Reason.PATH)
        if isinstance(self.rules, SignedUrlRules):
            verdict = verify_signed_url(target, fields, self.rules, now_s=now_s)
        else:
            try:
                token = one_token(target, fields, self.places)
            except Refused as refused:
                return refusal(refused.reason)
            if isinstance(self.rules, JwtRules):
                verdict = verify_jwt(token, self.rules, now_s=now_s)
            else:
                verdict = verify_cat(token, self.rules, now_s=now_s, method=method)
        if verdict.scope is not None and not verdict.scope.covers(path):
            return refusal(Reason.SCOPE)
        return verdict
