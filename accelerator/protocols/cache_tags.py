"""Tags by which an origin groups its responses for purges: Cache-Tag and Surrogate-Key. Decides no purge.

No RFC has them; these are the names and lists that CDNs agree on. Capitals make no difference: a purge that misses an
object because of its spelling would be worse than one that takes a stranger along.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from accelerator.errors import OriginError
from accelerator.protocols.fields import Field, Fields, get_all

# Cloudflare takes 1,000 tags of 1,024 characters in 16 KiB, Akamai 128 of 128. Each costs 32 bytes of memory.
TAGS_MAX: Final = 256
TAG_BYTES_MAX: Final = 1024
FIELDS: Final = frozenset({b"cache-tag", b"surrogate-key"})


def tags_of(fields: Fields) -> tuple[bytes, ...] | None:
    """The tags of a response, each once, in lower case; None: it says nothing of tags.

    Raises OriginError("tags") beyond the bounds: what could not be found again by one of its tags must not be stored.
    """
    lists = [value.split(b",") for value in get_all(fields, b"cache-tag")]
    lists += [value.split() for value in get_all(fields, b"surrogate-key")]
    if not lists:
        return None
    found = dict.fromkeys(tag for each in lists for text in each if (tag := text.strip(b" \t").lower()))
    if len(found) > TAGS_MAX or any(len(tag) > TAG_BYTES_MAX for tag in found):
        raise OriginError("tags", f"more than {TAGS_MAX} tags, or one of more than {TAG_BYTES_MAX} bytes: not stored")
    return tuple(found)


def without_tags(fields: Sequence[Field]) -> list[Field]:
    return [field for field in fields if field[0].lower() not in FIELDS]


def number_of_tag(tag: bytes) -> int:
    """What stands for a tag in memory: 64 bits. Two that met would be purged together, and no more than that."""
    return int.from_bytes(blake2b(tag.strip(b" \t").lower(), digest_size=8, person=b"cache-tag").digest(), "little")
