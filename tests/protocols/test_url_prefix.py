"""Manifests below a URL prefix: which URLs change, and that nothing else does."""

from __future__ import annotations

import pytest

from accelerator.protocols.url_prefix import DASH, HLS, Places, kind_of, prefixed, rewrite

PLACES = Places(
    {b"media.example": ((b"/keys", b"keys"), (b"/", b"media")), b"origin.corp": ((b"/", b"media"),)},
    ((b".cdn.example", ((b"/live", b"cdn"),)),),
)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (b"seg1.m4s", b"seg1.m4s"),
        (b"../a/seg1.m4s?x=/y", b"../a/seg1.m4s?x=/y"),
        (b"/live/seg1.m4s", b"/media/live/seg1.m4s"),
        (b"https://media.example/live/1.ts?t=a&b=c", b"/media/live/1.ts?t=a&b=c"),
        (b"HTTP://MEDIA.example:8443/live/1.ts", b"/media/live/1.ts"),
        (b"//origin.corp/a", b"/media/a"),
        (b"https://media.example/keys/1", b"/keys/keys/1"),
        (b"https://media.example/keysmith/1", b"/media/keysmith/1"),
        (b"https://media.example", b"/media/"),
        (b"https://eu.cdn.example/live/a", b"/cdn/live/a"),
        (b"https://eu.cdn.example/vod/a", b"https://eu.cdn.example/vod/a"),
        (b"https://stranger.example/a", b"https://stranger.example/a"),
        (b"https://media.example.evil/a", b"https://media.example.evil/a"),
        (b"https://user@media.example/a", b"https://user@media.example/a"),
        (b"data:text/plain,/a", b"data:text/plain,/a"),
        (b"skd://key", b"skd://key"),
        (b"{$base}/a", b"{$base}/a"),
        (b"", b""),
    ],
)
def test_one_url(url: bytes, expected: bytes) -> None:
    assert prefixed(url, b"media", PLACES) == expected


def test_a_path_of_another_origin_on_the_same_host_is_that_origins() -> None:
    """A playlist below /live named its key /keys/1, and got /live/keys/1, which no origin has."""
    places = Places({b"media.example": ((b"/keys", b"keys"), (b"/live", b"live"))})
    assert prefixed(b"/keys/1?x=/live/", b"live", places) == b"/keys/keys/1?x=/live/"
    assert prefixed(b"/live/1.ts", b"live", places) == b"/live/live/1.ts"
    assert prefixed(b"/other/1.ts", b"live", places) == b"/live/other/1.ts"
    playlist = b'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="/keys/1"\n#EXTINF:2,\n/live/1.ts\n'
    assert rewrite(HLS, playlist, b"live", places) == (
        b'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="/keys/keys/1"\n#EXTINF:2,\n/live/live/1.ts\n'
    )
    # Where the manifest's origin has the path on any of its hosts, it is that one's.
    both = Places({**places.exact, b"b.example": ((b"/", b"live"),)})
    assert prefixed(b"/keys/1", b"live", both) == b"/live/keys/1"


def test_a_playlist_changes_in_its_urls_only() -> None:
    playlist = (
        b'#EXTM3U\r\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="/a",NAME="https://media.example/n",URI="/a/en.m3u8"\r\n'
        b'#EXT-X-KEY:METHOD=AES-128,URI="https://media.example/keys/k1",IV=0x1\r\n'
        b'#EXT-X-CONTENT-STEERING:SERVER-URI="https://media.example/steer",PATHWAY-ID="cdn"\r\n'
        b'#EXT-X-MAP:URI="init.mp4"\r\n# a comment with https://media.example/a\r\n#EXTINF:2,\r\n'
        b"https://media.example/live/1.m4s\r\n\r\n#EXTINF:2,\r\n2.m4s\r\n"
    )
    assert kind_of(b"text/plain", playlist) == HLS
    assert rewrite(HLS, playlist, b"media", PLACES) == (
        b'#EXTM3U\r\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="/a",NAME="https://media.example/n",URI="/media/a/en.m3u8"\r\n'
        b'#EXT-X-KEY:METHOD=AES-128,URI="/keys/keys/k1",IV=0x1\r\n'
        b'#EXT-X-CONTENT-STEERING:SERVER-URI="/media/steer",PATHWAY-ID="cdn"\r\n'
        b'#EXT-X-MAP:URI="init.mp4"\r\n# a comment with https://media.example/a\r\n#EXTINF:2,\r\n'
        b"/media/live/1.m4s\r\n\r\n#EXTINF:2,\r\n2.m4s\r\n"
    )


def test_a_manifest_of_dash_changes_in_its_urls_only() -> None:
    manifest = (
        b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic">\n'
        b'<ContentSteering defaultServiceLocation="/a">https://media.example/steer</ContentSteering>'
        b'<Location>https://media.example/live/a.mpd?t=1&amp;u=2</Location>'
        b'<BaseURL serviceLocation="a"> https://media.example/live/ </BaseURL><BaseURL>rel/</BaseURL>\n'
        b'<SegmentTemplate media="/live/$Number$.m4s" initialization=\'https://origin.corp/i.mp4\' duration="2"/>\n'
        b'<UTCTiming schemeIdUri="urn:mpeg:dash:utc:http-iso:2014" value="https://media.example/time"/></MPD>'
    )
    assert kind_of(b"application/dash+xml", manifest) == DASH
    assert rewrite(DASH, manifest, b"media", PLACES) == (
        b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic">\n'
        b'<ContentSteering defaultServiceLocation="/a">/media/steer</ContentSteering>'
        b"<Location>/media/live/a.mpd?t=1&amp;u=2</Location>"
        b'<BaseURL serviceLocation="a"> /media/live/ </BaseURL><BaseURL>rel/</BaseURL>\n'
        b'<SegmentTemplate media="/media/live/$Number$.m4s" initialization=\'/media/i.mp4\' duration="2"/>\n'
        b'<UTCTiming schemeIdUri="urn:mpeg:dash:utc:http-iso:2014" value="https://media.example/time"/></MPD>'
    )


@pytest.mark.parametrize("body", [b"", b"<html><body>MPD</body></html>", b"EXTM3U", b"\x00" * 9])
def test_what_is_no_manifest_is_none(body: bytes) -> None:
    assert kind_of(b"application/octet-stream", body) is None
