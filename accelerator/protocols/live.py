"""The live edge: what is a playlist or a segment, what a playlist says, how long each lives when headers are silent.

Playlists come from strangers: reading them is bounded, never raises, and follows no URL. No HTTP rule lives here.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from enum import Enum
from xml.parsers import expat

from accelerator.errors import OriginError


class Kind(Enum):
    """What a response is to a player. PLAYLIST: liveness not known, as the body is not there yet or cannot be read."""

    OTHER = "other"
    PLAYLIST = "playlist"
    LIVE_PLAYLIST = "live-playlist"
    VOD_PLAYLIST = "vod-playlist"
    MULTIVARIANT = "multivariant"
    SEGMENT = "segment"
    INIT = "init"
    KEY = "key"


PLAYLISTS = frozenset({Kind.PLAYLIST, Kind.LIVE_PLAYLIST, Kind.VOD_PLAYLIST, Kind.MULTIVARIANT})
SEGMENTS = frozenset({Kind.SEGMENT, Kind.INIT})


@dataclass(frozen=True)
class Manifest:
    """What we read from a playlist (HLS) or an MPD (DASH).

    `target_duration_s`: EXT-X-TARGETDURATION, or MPD@maxSegmentDuration; UNKNOWN_TARGET_S where it is not said.
    `part_target_s`: 0 where there are no parts. `update_period_s`: MPD@minimumUpdatePeriod, None if absent or HLS.
    `timing_urls`: of UTCTiming over http, as written: relative to the MPD's base. Their answers are the time: never
    stored.
    """

    kind: Kind
    is_live: bool
    target_duration_s: float
    part_target_s: float = 0.0
    can_block_reload: bool = False
    update_period_s: float | None = None
    timing_urls: tuple[bytes, ...] = ()


# One upstream 404 at the live edge answers everyone who asks within this time (DESIGN.md section 5): long enough for
# the burst of 6,000 players that ask for one segment too early, shorter than any part.
NOT_FOUND_HOLD_S = 0.2
# Where a playlist says no target duration: a short segment, so that a guess makes requests rather than frozen players.
UNKNOWN_TARGET_S = 2.0
# A playlist must not widen its own rights: no segment on a corporate channel is longer (Apple asks for 6 s).
TARGET_MAX_S = 30.0
LIVE_LIFETIME_MAX_S = 5.0
LIVE_LIFETIME_MIN_S = 0.1

MULTIVARIANT_LIFETIME_S = 5.0
VOD_PLAYLIST_LIFETIME_S = 60.0
UNKNOWN_PLAYLIST_LIFETIME_S = 1.0
LIVE_MPD_LIFETIME_MAX_S = 1.0
SEGMENT_LIFETIME_S = 60.0
VOD_SEGMENT_LIFETIME_S = 3600.0
# Appendix B.1 of draft-pantos-hls-rfc8216bis: the 200 of a blocking playlist request keeps for six target durations.
BLOCKING_TARGETS = 6

# reliability.md section 5. A playlist of 6 h in segments of 2 s, with dates and long URLs, takes 1.3 MB.
MANIFEST_SIZE_MAX = 2 * 1024 * 1024
LINE_SIZE_MAX = 8 * 1024
XML_DEPTH_MAX = 32
XML_ELEMENTS_MAX = 50_000
TIMING_URLS_MAX = 16
_LEAST_TARGET_S = 0.1

_BOM = b"\xef\xbb\xbf"
_NUMBER = re.compile(rb"[0-9]{1,6}(?:\.[0-9]{1,9})?")
_PART_TARGET = re.compile(rb"(?:^|,)[ \t]*PART-TARGET=([0-9]{1,6}(?:\.[0-9]{1,9})?)")
_BLOCK_RELOAD = re.compile(rb"(?:^|,)[ \t]*CAN-BLOCK-RELOAD=YES(?:,|$)")
# xs:duration without years and months, which no live manifest uses
_DURATION = re.compile(
    r"P(?:([0-9]{1,4})D)?(?:T(?:([0-9]{1,6})H)?(?:([0-9]{1,6})M)?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)S)?)?"
)

_TYPES = {
    # RFC 8216 section 4 and 10, and the older spellings that servers still send.
    b"application/vnd.apple.mpegurl": Kind.PLAYLIST,
    b"application/x-mpegurl": Kind.PLAYLIST,
    b"application/mpegurl": Kind.PLAYLIST,
    b"audio/mpegurl": Kind.PLAYLIST,
    b"audio/x-mpegurl": Kind.PLAYLIST,
    # ISO/IEC 23009-1 Annex C
    b"application/dash+xml": Kind.PLAYLIST,
    b"video/vnd.mpeg.dash.mpd": Kind.PLAYLIST,
    b"application/mp4": Kind.SEGMENT,
    b"text/vtt": Kind.SEGMENT,
    b"application/ttml+xml": Kind.SEGMENT,
}
_EXTENSIONS = {
    b"m3u8": Kind.PLAYLIST,
    b"m3u": Kind.PLAYLIST,
    b"mpd": Kind.PLAYLIST,
    b"key": Kind.KEY,
} | dict.fromkeys(
    (b"ts m2ts m4s mp4 cmfv cmfa cmft cmfm m4a m4v m4i mov webm aac ac3 ec3 mp3 vtt webvtt ttml dash part").split(),
    Kind.SEGMENT,
)
# Types that say nothing of the content, and which extensions are believed with them. Any other type beats the
# extension: /account/x.m3u8 sent as text/html is a page (cache deception, reliability.md section 4).
_VAGUE_TYPES: dict[bytes, frozenset[bytes] | None] = {
    b"": None,
    b"application/octet-stream": None,
    b"binary/octet-stream": None,
    b"text/plain": frozenset({b"m3u8", b"m3u", b"vtt", b"webvtt"}),
    b"text/xml": frozenset({b"mpd", b"ttml"}),
    b"application/xml": frozenset({b"mpd", b"ttml"}),
}


def recognise(path: bytes, content_type: bytes) -> Kind:
    """Kind by media type, and by the path's extension only where the type says nothing. `path` may carry a query.

    The result for a manifest is PLAYLIST until read_manifest has seen the body.
    """
    media_type = content_type.partition(b";")[0].strip(b" \t").lower()
    name = path.partition(b"?")[0].rpartition(b"/")[2].lower()
    stem, dot, extension = name.rpartition(b".")
    kind = _TYPES.get(media_type, Kind.OTHER)
    if kind is Kind.OTHER and media_type.startswith((b"video/", b"audio/")):
        kind = Kind.SEGMENT
    if kind is Kind.OTHER and media_type in _VAGUE_TYPES and dot:
        believed = _VAGUE_TYPES[media_type]
        if believed is None or extension in believed:
            kind = _EXTENSIONS.get(extension, Kind.OTHER)
    if kind is Kind.SEGMENT and (extension == b"m4i" or stem.startswith(b"init") or stem.endswith(b"init")):
        return Kind.INIT
    return kind


def lifetime_s(kind: Kind, manifest: Manifest | None = None, *, is_blocking: bool = False) -> float:
    """How long profile media reuses a response whose headers give no lifetime. 0: not without validation.

    `manifest`: of a playlist, itself; of a segment, the playlist that lists it where the caller knows that.
    `is_blocking`: the request had `_HLS_msn`, so that the URL will not be asked again once it has been answered.
    The reasons for each number are in docs/decisions/0012-cache-rules.md.
    """
    if kind in SEGMENTS:
        is_vod = manifest is not None and not manifest.is_live and manifest.kind is Kind.VOD_PLAYLIST
        return VOD_SEGMENT_LIFETIME_S if is_vod else SEGMENT_LIFETIME_S
    if kind not in PLAYLISTS:
        return 0.0
    if manifest is None:
        return UNKNOWN_PLAYLIST_LIFETIME_S
    if manifest.kind is Kind.MULTIVARIANT:
        return MULTIVARIANT_LIFETIME_S
    if not manifest.is_live:
        return VOD_PLAYLIST_LIFETIME_S
    if manifest.update_period_s is not None:
        return _clamp(manifest.update_period_s / 2, LIVE_LIFETIME_MIN_S, LIVE_MPD_LIFETIME_MAX_S)
    if is_blocking and manifest.can_block_reload:
        return BLOCKING_TARGETS * manifest.target_duration_s
    return _clamp((manifest.part_target_s or manifest.target_duration_s) / 2, LIVE_LIFETIME_MIN_S, LIVE_LIFETIME_MAX_S)


def stale_limit_s(kind: Kind, manifest: Manifest | None = None) -> float | None:
    """How long a response may be stale at all; None: no limit of ours.

    A live playlist that no longer moves freezes players silently, an error makes them fail over: one target duration
    (DESIGN.md section 5). One whose liveness is unknown counts as live.
    """
    if manifest is None:
        return UNKNOWN_TARGET_S if kind in (Kind.PLAYLIST, Kind.LIVE_PLAYLIST) else None
    return manifest.target_duration_s if manifest.is_live else None


def _clamp(value: float, least: float, most: float) -> float:
    return max(least, min(value, most))


def read_manifest(body: bytes, path: bytes = b"", content_type: bytes = b"") -> Manifest | None:
    """What caching must know of a manifest; None where it is too large or not one. Never raises.

    The format is told by the body alone: `path` and `content_type` said that this is a manifest, and lie often enough
    about which. A gzip coded body is read too, up to the same size.
    """
    text = _inflated(body) if body[:2] == b"\x1f\x8b" else body
    if text is None or len(text) > MANIFEST_SIZE_MAX:
        return None
    text = text.removeprefix(_BOM)
    if text.startswith(b"#EXTM3U") and text[7:8] in (b"\n", b"\r", b" ", b"\t", b""):
        return _read_hls(text)
    if text.lstrip(b" \t\r\n").startswith(b"<"):
        return _read_mpd(text)
    return None


def _inflated(body: bytes) -> bytes | None:
    inflater = zlib.decompressobj(wbits=31)
    try:
        text = inflater.decompress(body, MANIFEST_SIZE_MAX + 1)
    except zlib.error:
        return None
    return text if inflater.eof else None


def _tag(text: bytes, tag: bytes) -> bytes | None:
    """The rest of the first line that is this tag: b"" for a tag without value, None if there is none."""
    needle = b"\n" + tag
    start = text.find(needle)
    while start >= 0:
        start += len(needle)
        line = text[start : start + LINE_SIZE_MAX].partition(b"\n")[0].rstrip(b"\r \t")
        if not line or line.startswith(b":"):
            return line[1:]
        start = text.find(needle, start)
    return None


def _read_hls(text: bytes) -> Manifest:
    # RFC 8216 section 4.3.4: these tags stand in multivariant playlists only
    if any(_tag(text, tag) is not None for tag in (b"#EXT-X-STREAM-INF", b"#EXT-X-I-FRAME-STREAM-INF")):
        return Manifest(Kind.MULTIVARIANT, False, UNKNOWN_TARGET_S)
    target = _number(_tag(text, b"#EXT-X-TARGETDURATION"))
    # RFC 8216 sections 4.3.3.4 and 4.3.3.5
    is_live = _tag(text, b"#EXT-X-ENDLIST") is None and _tag(text, b"#EXT-X-PLAYLIST-TYPE") != b"VOD"
    part = _PART_TARGET.search(_tag(text, b"#EXT-X-PART-INF") or b"")
    return Manifest(
        Kind.LIVE_PLAYLIST if is_live else Kind.VOD_PLAYLIST,
        is_live,
        _target(target),
        part_target_s=min(float(part.group(1)), TARGET_MAX_S) if part else 0.0,
        can_block_reload=_BLOCK_RELOAD.search(_tag(text, b"#EXT-X-SERVER-CONTROL") or b"") is not None,
    )


def _number(value: bytes | None) -> float | None:
    return float(value) if value is not None and _NUMBER.fullmatch(value.strip(b" \t")) else None


def _target(seconds: float | None) -> float:
    if seconds is None or not math.isfinite(seconds) or seconds <= 0:
        return UNKNOWN_TARGET_S
    return max(_LEAST_TARGET_S, min(seconds, TARGET_MAX_S))


def _duration_s(value: str | None) -> float | None:
    match = _DURATION.fullmatch(value.strip()) if value is not None and len(value) <= 64 else None
    if match is None or match.group() in ("P", "PT"):
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


class _MpdReader:
    """Handlers of one parse: no tree is built, so memory is bounded by the largest element."""

    def __init__(self) -> None:
        self.depth = 0
        self.elements = 0
        self.root: dict[str, str] | None = None
        self.timing_urls: list[bytes] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        self.elements += 1
        if self.depth > XML_DEPTH_MAX or self.elements > XML_ELEMENTS_MAX:
            raise OriginError("manifest", "MPD: too deep or too many elements")
        local = name.rpartition(":")[2]
        if self.depth == 1:
            if local != "MPD":
                raise OriginError("manifest", "XML, but not an MPD")
            self.root = attributes
        elif local == "UTCTiming" and ":http-" in attributes.get("schemeIdUri", ""):
            # ISO/IEC 23009-1 section 5.8.4.11: for http-xsdate, http-iso, http-head, http-ntp a list of URLs
            urls = attributes.get("value", "").split()
            self.timing_urls += [url.encode() for url in urls[: TIMING_URLS_MAX - len(self.timing_urls)]]

    def end(self, name: str) -> None:
        self.depth -= 1

    def refuse(self, *_: object) -> None:
        # Any DTD is refused before its entities can be used: expat 2.5.0 still lets 50 KB grow 148 times.
        raise OriginError("manifest", "MPD: a DTD is not allowed")


def _read_mpd(text: bytes) -> Manifest | None:
    reader = _MpdReader()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.EntityDeclHandler = reader.refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    try:
        # In one piece: expat below 2.6 is quadratic where a large token arrives in many.
        parser.Parse(text, True)
    except (expat.ExpatError, OriginError, ValueError, LookupError):
        return None
    root = reader.root or {}
    is_live = root.get("type") == "dynamic"
    update_period_s = _duration_s(root.get("minimumUpdatePeriod"))
    if update_period_s is None and is_live:
        # Such an MPD is not updated (ISO/IEC 23009-1 section 5.3.1.2), but encoders that restart do it anyway.
        update_period_s = UNKNOWN_TARGET_S
    return Manifest(
        Kind.LIVE_PLAYLIST if is_live else Kind.VOD_PLAYLIST,
        is_live,
        _target(_duration_s(root.get("maxSegmentDuration"))),
        update_period_s=update_period_s if is_live else None,
        timing_urls=tuple(reader.timing_urls),
    )
