"""Manifests for who came by a URL prefix (http://BOX/ORIGIN/path): URLs that would lead past it are written anew. Pure.

Relative URLs stay as they are: a player resolves them below the prefix by itself. Absolute ones of known hosts, and
those that begin with a slash, get the prefix of the origin that they belong to. Everything else is left alone, byte for
byte: a URL of a stranger, variables ({$name}), XML entities, UTCTiming.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

HLS, DASH = "hls", "dash"

# RFC 8216 section 4.2: a quoted string holds no quote and no line break.
_HLS_URLS = re.compile(rb'((?:[A-Z0-9-]*-)?URI|X-ASSET-LIST)="([^"\r\n]*)"')
_DASH_ELEMENTS = re.compile(
    rb"(<((?:[A-Za-z_][\w.-]*:)?(?:BaseURL|Location|PatchLocation|ContentSteering))(?:\s[^<>]*)?>\s*)([^<>]*?)"
    rb"(\s*</\2\s*>)"
)
_DASH_ATTRIBUTES = re.compile(
    rb"(\s(?:media|initialization|sourceURL|index|bitstreamSwitching|xlink:href)\s*=\s*)(\"([^\"<]*)\"|'([^'<]*)')"
)
_ABSOLUTE = re.compile(rb"(?:[hH][tT][tT][pP][sS]?:)?//(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(/[^\s]*)?")


@dataclass(frozen=True, slots=True)
class Places:
    """Where origins are. `exact`: host -> (path prefix, origin), longest path first; `suffixes` the same for
    ".example", longest first."""

    exact: Mapping[bytes, Sequence[tuple[bytes, bytes]]]
    suffixes: Sequence[tuple[bytes, Sequence[tuple[bytes, bytes]]]] = ()

    def origin_of(self, host: bytes, path: bytes) -> bytes | None:
        host = host.lower().rstrip(b".")
        found = self.exact.get(host)
        if found is None:
            found = next((rows for suffix, rows in self.suffixes if host.endswith(suffix) and host != suffix), ())
        return _first(found, path)

    def hosts_of(self, origin: bytes) -> list[Sequence[tuple[bytes, bytes]]]:
        """The rows of each host that the origin has a path of."""
        hosts = (*self.exact.values(), *(rows for _, rows in self.suffixes))
        return [rows for rows in hosts if any(each == origin for _, each in rows)]


def _first(rows: Sequence[tuple[bytes, bytes]], path: bytes) -> bytes | None:
    path = path.partition(b"?")[0]
    for prefix, origin in rows:
        whole = prefix.rstrip(b"/")
        if path == prefix or path.startswith(whole + b"/"):
            return origin
    return None


def kind_of(content_type: bytes, body: bytes) -> str | None:
    """By what it is: both formats say so in their first bytes, whatever the type says."""
    begin = body[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if begin.startswith(b"#EXTM3U"):
        return HLS
    is_xml = b"xml" in content_type.lower() or begin.startswith(b"<")
    return DASH if is_xml and re.search(rb"<(?:[A-Za-z_][\w.-]*:)?MPD[\s>]", begin) else None


def rewrite(kind: str, body: bytes, own: bytes, places: Places) -> bytes:
    """`own`: the origin that the manifest came from."""

    hosts = places.hosts_of(own)

    def mapped(url: bytes) -> bytes:
        return prefixed(url, own, places, hosts)

    return _rewrite_hls(body, mapped) if kind == HLS else _rewrite_dash(body, mapped)


def prefixed(
    url: bytes, own: bytes, places: Places, hosts: Sequence[Sequence[tuple[bytes, bytes]]] | None = None
) -> bytes:
    """One URL as it has to be below the prefix. `hosts`: places.hosts_of(own)."""
    if url.startswith(b"/") and not url.startswith(b"//"):
        # The path may be another origin's of the same host; the manifest's own has it wherever it can.
        found_there = [_first(rows, url) for rows in (places.hosts_of(own) if hosts is None else hosts)]
        other = next((each for each in found_there if each), None)
        return b"/" + (own if other is None or own in found_there else other) + url
    found = _ABSOLUTE.fullmatch(url)
    if found is None:
        return url
    path = found[2] or b"/"
    origin = places.origin_of(found[1], path)
    return url if origin is None else b"/" + origin + path


def _rewrite_hls(body: bytes, mapped: Callable[[bytes], bytes]) -> bytes:
    lines = body.split(b"\n")
    for index, line in enumerate(lines):
        if line.startswith(b"#EXT"):
            if b'"' in line:
                lines[index] = _HLS_URLS.sub(lambda found: b'%s="%s"' % (found[1], mapped(found[2])), line)
        elif line and not line.startswith(b"#"):
            url = line.strip(b" \t\r")
            if url:
                lines[index] = line.replace(url, mapped(url), 1)
    return b"\n".join(lines)


def _rewrite_dash(body: bytes, mapped: Callable[[bytes], bytes]) -> bytes:
    body = _DASH_ELEMENTS.sub(lambda found: found[1] + mapped(found[3]) + found[4], body)

    def attribute(found: re.Match[bytes]) -> bytes:
        quote = found[2][:1]
        return found[1] + quote + mapped(found[2][1:-1]) + quote

    return _DASH_ATTRIBUTES.sub(attribute, body)
