"""What policy says of an origin, as far as HTTP rules need it: plain values. No decision is taken here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OriginRules:
    """One origin's switches.

    `override_private`: no-store and private are not obeyed for recognised playlists and segments (profile media only).
    `not_found_ceiling_s`: the longest time that a stored 404, 410 or redirect is reused (profile media).
    `forward`: names, in any case, of further request fields that go to the origin (profile media).
    `credential_headers` (lower case), `credential_cookies`: where viewers' credentials are. Each viewer is judged by
        them before he gets anything, so they make no answer personal, and select no variant.
    `forward_tags`: viewers get Cache-Tag and Surrogate-Key.
    `max_offline_s`: what was not checked with the origin for longer is not used; 0: no limit.
    """

    profile: Literal["media", "generic"] = "media"
    override_private: bool = False
    not_found_ceiling_s: float = 10.0
    forward: tuple[bytes, ...] = ()
    credential_headers: tuple[bytes, ...] = ()
    credential_cookies: tuple[bytes, ...] = ()
    forward_tags: bool = False
    max_offline_s: float = 0.0
