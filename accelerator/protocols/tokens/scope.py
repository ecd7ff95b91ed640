"""Which paths a credential covers: objects, directories, patterns. Bytes only; no credential is verified here.

Paths are compared as they stand in the request, byte for byte, because that is what goes to the origin. A path that an
origin may resolve to another one (dot segments, encoded slashes) is covered by nothing: `/free/../paid/x` begins with
`/free/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

PATTERNS_MAX = 32
PATTERN_BYTES_MAX = 1024

# A raw or encoded dot segment, an encoded slash, a backslash or an encoded one, an empty segment, a control character,
# an encoded NUL, a path parameter at a dot segment (`/..;/`, which servlet containers resolve), a `%` that encodes
# nothing, or one that encodes itself (`%252e`: decoded twice somewhere).
_AMBIGUOUS = re.compile(
    rb"/(?:\.|%2e){1,2}(?=[/;]|%3b|\Z)|%(?:2f|5c|00|25)|\\|//|[\x00-\x20\x7f#]|%(?![0-9a-f]{2})", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Scope:
    """`object`: each pattern is one path. `directory`: each ends with "/" and covers all below. `acl`: `*` stands for
    any bytes, "/" among them, `?` for one (as CloudFront and Akamai write them)."""

    kind: Literal["object", "directory", "acl"]
    patterns: tuple[bytes, ...]

    def covers(self, path: bytes) -> bool:
        """Whether `path` (without query) is covered."""
        if is_ambiguous(path):
            return False
        if self.kind == "object":
            return path in self.patterns
        if self.kind == "directory":
            return any(path.startswith(pattern) for pattern in self.patterns)
        return any(matches(pattern, path) for pattern in self.patterns)

    def covers_directory(self, path: bytes) -> bool:
        """Whether all that is in the directory of `path`, and below, is covered: then one yes is good for all of it."""
        if not self.covers(path):
            return False
        directory = directory_of(path)
        if self.kind == "directory":
            return any(directory.startswith(pattern) for pattern in self.patterns)
        if self.kind == "acl":
            # One star, at the end: anything else in a pattern may tell the files of a directory apart.
            return any(
                pattern.endswith(b"*")
                and b"*" not in pattern[:-1]
                and b"?" not in pattern
                and directory.startswith(pattern[:-1])
                for pattern in self.patterns
            )
        return False


def is_ambiguous(path: bytes) -> bool:
    """Whether an origin may take `path` for another one."""
    return not path.startswith(b"/") or _AMBIGUOUS.search(path) is not None


def directory_of(path: bytes) -> bytes:
    """Up to the last slash, which stays."""
    return path[: path.rfind(b"/") + 1]


def matches(pattern: bytes, text: bytes) -> bool:
    """Whether `pattern` with `*` and `?` matches the whole of `text`; at most len(pattern) * len(text) steps."""
    p = t = 0
    star = mark = -1
    while t < len(text):
        if p < len(pattern) and pattern[p] == 0x2A:
            star, mark = p, t
            p += 1
        elif p < len(pattern) and (pattern[p] == 0x3F or pattern[p] == text[t]):
            p += 1
            t += 1
        elif star >= 0:
            mark += 1
            p, t = star + 1, mark
        else:
            return False
    return pattern[p:].strip(b"*") == b""


def scope_of(patterns: tuple[bytes, ...]) -> Scope | None:
    """The scope that a list of paths means: each an object, a directory ("/" at its end) or a pattern. None: not a list
    of paths."""
    if not 0 < len(patterns) <= PATTERNS_MAX:
        return None
    for pattern in patterns:
        if not pattern.startswith(b"/") or len(pattern) > PATTERN_BYTES_MAX or is_ambiguous(pattern):
            return None
    if any(b"*" in pattern or b"?" in pattern for pattern in patterns):
        return Scope("acl", tuple(each + b"*" if each.endswith(b"/") else each for each in patterns))
    if all(pattern.endswith(b"/") for pattern in patterns):
        return Scope("directory", patterns)
    if any(pattern.endswith(b"/") for pattern in patterns):
        return Scope("acl", tuple(each + b"*" if each.endswith(b"/") else each for each in patterns))
    return Scope("object", patterns)


EVERYWHERE = Scope("directory", (b"/",))
