"""The disk tier's secrets: a key per class, sealed by the site's, and the key that names are digested with.

One small file beside the log. Dropping a class's key erases what the class has on the disk. No cipher is made here.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from accelerator.dataplane import seal_bytes, unseal_bytes

FILE_NAME = "keys"
VERSION = 1
KEY_BYTES = 32
_NONCE_BYTES = 12


def number_of(name: str) -> int:
    """A class's or an origin's number in records: 32 bits of its name's digest, never 0."""
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little") or 1


@dataclass(frozen=True, slots=True)
class Naming:
    """What a record is of: digest of origin and key, numbers of origin and class, the class's name. `class_number`
    stands for a class whose name isn't known any more."""

    digest: bytes
    origin_id: int
    class_name: str
    class_number: int = 0

    @property
    def class_id(self) -> int:
        return self.class_number or number_of(self.class_name)

    @property
    def key(self) -> int:
        return int.from_bytes(self.digest[:8], "little")


@dataclass
class DiskKeys:
    """`site`: the key that seals the others; None: nothing is sealed. `classes`: by name; "" is for no class.
    `erasing`: numbers of classes whose records before a sequence have yet to be taken out."""

    site: bytes | None
    digest_key: bytes
    classes: dict[str, bytes] = field(default_factory=dict)
    erasing: dict[int, int] = field(default_factory=dict)
    is_changed: bool = True
    _by_number: dict[int, bytes] = field(default_factory=dict)
    _nothing: bytes = field(default_factory=lambda: os.urandom(KEY_BYTES))

    @classmethod
    def make(cls, site: bytes | None) -> DiskKeys:
        return cls(site, os.urandom(KEY_BYTES))

    @classmethod
    def load(cls, data: bytes, site: bytes | None) -> DiskKeys | None:
        """What `dump` gave under the same site key; None: another's, or damaged."""
        try:
            document: Any = json.loads(data)
            if document["version"] != VERSION or document["is_sealed"] != (site is not None):
                return None
            digest_key = _open(site, "digest", document["digest_key"])
            erasing = {int(number): int(limit) for number, limit in document.get("erasing", {}).items()}
            classes = {str(name): _open(site, f"class {name}", text) for name, text in document["classes"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if digest_key is None or None in classes.values():
            return None
        kept = {name: key for name, key in classes.items() if key is not None}
        keys = cls(site, digest_key, kept, erasing, is_changed=False)
        keys._by_number = {number_of(name): key for name, key in keys.classes.items()}
        return keys

    def dump(self) -> bytes:
        classes = {name: _seal(self.site, f"class {name}", key) for name, key in self.classes.items()}
        document = {
            "version": VERSION,
            "is_sealed": self.site is not None,
            "digest_key": _seal(self.site, "digest", self.digest_key),
            "classes": classes,
            "erasing": self.erasing,
        }
        return json.dumps(document).encode()

    def key_of(self, class_name: str) -> bytes | None:
        """The key of a class, made when first asked for (`is_changed`: to be written); None: nothing is sealed."""
        if self.site is None:
            return None
        key = self.classes.get(class_name)
        if key is None:
            key = self.classes[class_name] = os.urandom(KEY_BYTES)
            self._by_number[number_of(class_name)] = key
            self.is_changed = True
        return key

    def key_of_number(self, class_number: int) -> bytes | None:
        """The same by number. Of a class that has none, a key that nothing was ever sealed by: without one, what is not
        sealed would be believed, which whoever can write to the disk could put there."""
        if self.site is None:
            return None
        return self._by_number.get(class_number, self._nothing)

    def drop(self, class_number: int) -> bool:
        """Of a class whose name may not be known any more."""
        self._by_number.pop(class_number, None)
        gone = [name for name in self.classes if number_of(name) == class_number]
        for name in gone:
            del self.classes[name]
        self.is_changed |= bool(gone)
        return bool(gone)

    def written(self, key: bytes) -> bytes:
        """What is written of a key: its path. Queries hold credentials and names, so a digest stands for them."""
        path, mark, query = key.partition(b"?")
        if not mark:
            return path
        return path + b"?" + blake2b(query, key=self.digest_key, digest_size=8).hexdigest().encode()

    def tag(self, number: int) -> int:
        """What stands for a tag in the index, which isn't sealed."""
        digest = blake2b(number.to_bytes(8, "little"), key=self.digest_key, digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def digest(self, origin: str, key: bytes) -> bytes:
        """What a key is called in records: who reads the disk can't try names without the key."""
        return blake2b(origin.encode() + b"\0" + key, key=self.digest_key, digest_size=16).digest()


def _seal(site: bytes | None, name: str, key: bytes) -> str:
    if site is None:
        return key.hex()
    nonce = os.urandom(_NONCE_BYTES)
    return (nonce + seal_bytes(site, nonce, name.encode(), key)).hex()


def _open(site: bytes | None, name: str, text: str) -> bytes | None:
    data = bytes.fromhex(text)
    if site is not None:
        opened = unseal_bytes(site, data[:_NONCE_BYTES], name.encode(), data[_NONCE_BYTES:])
        data = opened if opened is not None else b""
    return data if len(data) == KEY_BYTES else None
