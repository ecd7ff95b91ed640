"""One response, judged: what the cache tests have in common. No assertion stands here."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from accelerator.protocols.cache_decide import OriginRules, Verdict, decide
from accelerator.protocols.fields import Field

MEDIA = OriginRules()
GENERIC = OriginRules(profile="generic")
BOTH = pytest.mark.parametrize("rules", [MEDIA, GENERIC], ids=["media", "generic"])
NOW_S = 1_700_000_000.0
ETAG = (b"ETag", b'"a"')
AUTHORIZATION = (b"Authorization", b"Bearer t")
COOKIE = (b"Cookie", b"session=1")


def cc(value: bytes) -> Field:
    return (b"Cache-Control", value)


def judge(
    *head: Field,
    rules: OriginRules = MEDIA,
    status: int = 200,
    method: bytes = b"GET",
    path: bytes = b"/page",
    request: Sequence[Field] = (),
    delay_s: float = 0.0,
    is_timing: bool = False,
) -> Verdict:
    return decide(
        request,
        method,
        path,
        rules,
        status,
        head,
        request_wall_s=NOW_S - delay_s,
        response_wall_s=NOW_S,
        is_timing=is_timing,
    )
