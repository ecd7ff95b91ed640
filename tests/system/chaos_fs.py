"""A file system in memory that fails when told to, and forgets at a power cut what nobody synced. Test support.

`python chaos_fs.py FOLDER` serves it over /dev/fuse (root, no library); `ChaosFs` starts that and gives it orders, one
JSON object a line. What is durable is what POSIX promises and no more: a file's bytes up to its last fsync, a folder's
entries up to the last fsync of the folder. Of what came after, a cut keeps pages by chance, and of the folder's changes
a first part, as a journal would.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import random
import select
import stat
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_IN = struct.Struct("<IIQQIIIHH")
_ATTR = struct.Struct("<6Q10I")
_OPS = {
    1: "lookup", 3: "getattr", 4: "setattr", 8: "mknod", 9: "mkdir", 10: "unlink", 11: "rmdir", 12: "rename",
    13: "link", 14: "open", 15: "read", 16: "write", 17: "statfs", 18: "release", 20: "fsync", 25: "flush",
    26: "init", 27: "opendir", 28: "readdir", 29: "releasedir", 30: "fsyncdir", 34: "access", 35: "create",
    43: "fallocate", 45: "rename2",
}  # fmt: skip
_FORGET = frozenset({2, 36, 42})
_DIRECT_IO = 1
_MAX_WRITE = 1 << 20
_PAGE = 4096
N_THREADS = 4


class Refused(Exception):
    def __init__(self, number: int) -> None:
        self.number = number


@dataclass
class Node:
    """`pending`: what was written since the last sync, in order: (offset, bytes), or (length, None) of a new length."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    durable_names: dict[str, int] = field(default_factory=dict)
    changes: list[dict[str, int]] = field(default_factory=list)  # the names after each change since the last sync
    changed_ns: int = 0

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Tree:
    """What is stored, and the faults that are on. One lock for all of it; delays are slept outside."""

    def __init__(self, *, is_forgetful: bool) -> None:
        self.nodes = {1: Node(stat.S_IFDIR | 0o755)}
        self.lock = threading.Lock()
        self.faults: dict[str, dict[str, Any]] = {}
        self.capacity = 1 << 40
        self.counts: dict[str, int] = {}
        self.dice = random.Random(1)
        self._is_forgetful = is_forgetful
        self._next = 2

    # -- orders --------------------------------------------------------------------------------------------------------

    def order(self, what: str, given: dict[str, Any]) -> Any:
        with self.lock:
            if what == "faults":
                self.faults = given
            elif what == "capacity":
                self.capacity = given["bytes"]
            elif what == "cut":
                self._cut(random.Random(given["seed"]), given["keep"])
            return {"counts": dict(self.counts), "bytes": self.used()}

    def used(self) -> int:
        return sum(len(node.data) for node in self.nodes.values())

    def _cut(self, dice: random.Random, keep: float) -> None:
        """The power is off. `keep`: how likely a page that was not synced is there all the same."""
        for node in self.nodes.values():
            data = bytearray(node.durable)
            for offset, piece in node.pending:
                if piece is None:
                    if dice.random() < keep:
                        data = data[:offset].ljust(offset, b"\0")
                    continue
                for at in range(offset, offset + len(piece), _PAGE):
                    if dice.random() < keep:
                        page = piece[at - offset : at - offset + _PAGE]
                        data = data.ljust(at, b"\0")
                        data[at : at + len(page)] = page
            node.data, node.pending, node.durable = data, [], bytes(data)
            if node.is_folder:
                kept = dice.randrange(len(node.changes) + 1) if keep else 0
                node.names = dict(node.changes[kept - 1] if kept else node.durable_names)
                node.durable_names, node.changes = dict(node.names), []
        reached, left = set(), [1]
        while left:
            number = left.pop()
            reached.add(number)
            left += [each for each in self.nodes[number].names.values() if each not in reached]
        self.nodes = {number: node for number, node in self.nodes.items() if number in reached}

    def fault(self, op: str) -> dict[str, Any]:
        """The fault that this operation meets now; empty: none."""
        rule = self.faults.get(op) or self.faults.get("*") or {}
        if rule and (rate := rule.get("rate", 1.0)) < 1.0 and self.dice.random() >= rate:
            return {}
        return rule

    # -- operations: (node, body of the request) -> body of the answer -------------------------------------------------

    def attributes(self, number: int) -> bytes:
        node = self.nodes[number]
        s, ns = divmod(node.changed_ns, 10**9)
        size = len(node.data)
        return _ATTR.pack(number, size, (size + 511) // 512, s, s, s, ns, ns, ns, node.mode, 1, 0, 0, 0, _PAGE, 0)

    def entry(self, number: int) -> bytes:
        return struct.pack("<QQQQII", number, 1, 0, 0, 0, 0) + self.attributes(number)

    def child(self, parent: int, name: str) -> int:
        number = self.nodes[parent].names.get(name)
        if number is None:
            raise Refused(errno.ENOENT)
        return number

    def change(self, parent: int) -> None:
        node = self.nodes[parent]
        node.changed_ns = time.time_ns()
        if self._is_forgetful:
            node.changes.append(dict(node.names))

    def add(self, parent: int, name: str, mode: int) -> int:
        if name in self.nodes[parent].names:
            raise Refused(errno.EEXIST)
        number, self._next = self._next, self._next + 1
        self.nodes[number] = Node(mode, changed_ns=time.time_ns())
        self.nodes[parent].names[name] = number
        self.change(parent)
        return number

    def lookup(self, number: int, body: bytes) -> bytes:
        return self.entry(self.child(number, _name(body)))

    def getattr(self, number: int, body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self.attributes(number)

    def setattr(self, number: int, body: bytes) -> bytes:
        node = self.nodes[number]
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        if valid & 8:
            self._resize(node, size)
        if valid & 1:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(struct.unpack_from("<I", body, 68)[0])
        return self.getattr(number, b"")

    def _resize(self, node: Node, size: int) -> None:
        if size > len(node.data) and self.used() + size - len(node.data) > self.capacity:
            raise Refused(errno.ENOSPC)
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))
        if self._is_forgetful:
            node.pending.append((size, None))

    def mknod(self, number: int, body: bytes) -> bytes:
        mode = struct.unpack_from("<I", body)[0]
        return self.entry(self.add(number, _name(body[16:]), mode))

    def mkdir(self, number: int, body: bytes) -> bytes:
        mode = struct.unpack_from("<I", body)[0]
        return self.entry(self.add(number, _name(body[8:]), stat.S_IFDIR | mode))

    def create(self, number: int, body: bytes) -> bytes:
        made = self.add(number, _name(body[16:]), struct.unpack_from("<I", body, 4)[0])
        return self.entry(made) + struct.pack("<QII", 0, _DIRECT_IO, 0)

    def unlink(self, number: int, body: bytes) -> bytes:
        self.child(number, _name(body))
        del self.nodes[number].names[_name(body)]
        self.change(number)
        return b""

    def rmdir(self, number: int, body: bytes) -> bytes:
        if self.nodes[self.child(number, _name(body))].names:
            raise Refused(errno.ENOTEMPTY)
        return self.unlink(number, body)

    def rename(self, number: int, body: bytes, skip: int = 8) -> bytes:
        to = struct.unpack_from("<Q", body)[0]
        old, new = (part.decode() for part in body[skip:].split(b"\0")[:2])
        moved = self.child(number, old)
        del self.nodes[number].names[old]
        self.nodes[to].names[new] = moved
        self.change(number)
        if to != number:
            self.change(to)
        return b""

    def link(self, number: int, body: bytes) -> bytes:
        known, name = struct.unpack_from("<Q", body)[0], _name(body[8:])
        if name in self.nodes[number].names:
            raise Refused(errno.EEXIST)
        self.nodes[number].names[name] = known
        self.change(number)
        return self.entry(known)

    def rename2(self, number: int, body: bytes) -> bytes:
        return self.rename(number, body, 16)

    def open(self, number: int, body: bytes) -> bytes:
        return struct.pack("<QII", 0, _DIRECT_IO, 0)

    def opendir(self, number: int, body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0)

    def readdir(self, number: int, body: bytes) -> bytes:
        offset, size = struct.unpack_from("<QI", body, 8)
        rows = b""
        for at, (name, each) in enumerate(list(self.nodes[number].names.items())[offset:], offset + 1):
            text = name.encode()
            row = struct.pack("<QQII", each, at, len(text), stat.S_IFMT(self.nodes[each].mode) >> 12) + text
            row = row.ljust(-(-len(row) // 8) * 8, b"\0")
            if len(rows) + len(row) > size:
                break
            rows += row
        return rows

    def read(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        data = bytes(memoryview(self.nodes[number].data)[offset : offset + size])
        rule = self.fault("read")
        if rule.get("flip") and data:
            spoilt = bytearray(data)
            spoilt[self.dice.randrange(len(spoilt))] ^= 1 << self.dice.randrange(8)
            data = bytes(spoilt)
        return data

    def write(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        node, piece = self.nodes[number], body[40 : 40 + size]
        torn = self.fault("write").get("torn")
        said = size if torn is None or self.faults["write"].get("lies") else min(size, torn)
        if torn is not None:
            piece = piece[:torn]
        grows = offset + len(piece) - len(node.data)
        if grows > 0:
            if self.used() + grows > self.capacity:
                raise Refused(errno.ENOSPC)
            node.data.extend(bytes(grows))
        node.data[offset : offset + len(piece)] = piece
        node.changed_ns = time.time_ns()
        if self._is_forgetful:
            node.pending.append((offset, bytes(piece)))
        return struct.pack("<II", said, 0)

    def fallocate(self, number: int, body: bytes) -> bytes:
        _, offset, length, mode = struct.unpack_from("<QQQI", body)
        node = self.nodes[number]
        if self.used() + offset + length - len(node.data) > self.capacity:
            raise Refused(errno.ENOSPC)
        if not mode & 1 and offset + length > len(node.data):
            self._resize(node, offset + length)
        return b""

    def fsync(self, number: int, body: bytes) -> bytes:
        node = self.nodes[number]
        if self._is_forgetful:
            node.durable, node.pending = bytes(node.data), []
        return b""

    def fsyncdir(self, number: int, body: bytes) -> bytes:
        node = self.nodes[number]
        node.durable_names, node.changes = dict(node.names), []
        return b""

    def statfs(self, number: int, body: bytes) -> bytes:
        total = self.capacity // _PAGE
        free = max(0, self.capacity - self.used()) // _PAGE
        return struct.pack("<5Q4I24x", total, free, free, 1 << 20, 1 << 20, _PAGE, 255, _PAGE, 0)

    def init(self, number: int, body: bytes) -> bytes:
        offered = struct.unpack_from("<IIII", body)[3]
        flags = offered & (1 | 1 << 5 | 1 << 18 | 1 << 22)  # asynchronous reads, large writes, pages by request
        return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 17, flags, 16, 12, _MAX_WRITE, 1, _MAX_WRITE // _PAGE, 0, 0)

    def access(self, number: int, body: bytes) -> bytes:
        return b""

    release = releasedir = flush = access


def _name(body: bytes) -> str:
    return body.partition(b"\0")[0].decode()


def answer(tree: Tree, request: bytes) -> bytes | None:
    """What the kernel is told; None: it wants no answer."""
    _, opcode, unique, number, *_ = _IN.unpack_from(request)
    if opcode in _FORGET:
        return None
    op = _OPS.get(opcode, "")
    error, said = errno.ENOSYS, b""
    if op:
        with tree.lock:
            tree.counts[op] = tree.counts.get(op, 0) + 1
            rule = tree.fault(op)
        if rule.get("delay_s"):
            time.sleep(rule["delay_s"])
        try:
            if rule.get("error"):
                raise Refused(getattr(errno, rule["error"]))
            with tree.lock:
                if number not in tree.nodes and op not in ("init", "release", "releasedir", "flush"):
                    raise Refused(errno.ESTALE)
                error, said = 0, getattr(tree, op)(number, request[_IN.size :])
        except Refused as refused:
            error, said = refused.number, b""
    return struct.pack("<IiQ", 16 + len(said), -error, unique) + said


def serve(tree: Tree, device: int) -> None:
    while True:
        try:
            request = os.read(device, _MAX_WRITE + 8192)
        except OSError as fault:
            if fault.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                continue
            return  # ENODEV: it was unmounted
        said = answer(tree, request)
        if said is not None:
            with contextlib.suppress(OSError):  # the asker was killed meanwhile
                os.write(device, said)


def main(folder: str, is_forgetful: bool) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={_MAX_WRITE}"
    if _libc.mount(b"chaos", folder.encode(), b"fuse.chaos", 6, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    tree = Tree(is_forgetful=is_forgetful)
    for _ in range(N_THREADS):
        threading.Thread(target=serve, args=(tree, device), daemon=True).start()
    print("mounted", flush=True)
    for line in sys.stdin:
        what, given = json.loads(line)
        print(json.dumps(tree.order(what, given)), flush=True)
    _libc.umount2(folder.encode(), 2)


class ChaosFs:
    """Mounted between __enter__ and __exit__. `why_not()`: why it can't be, here."""

    def __init__(self, folder: Path, *, is_forgetful: bool = False) -> None:
        self.folder = folder
        self._mode = "forgetful" if is_forgetful else "plain"
        self._lock = threading.Lock()

    @staticmethod
    def why_not() -> str | None:
        if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
            return "needs root and /dev/fuse"
        try:
            os.close(os.open("/dev/fuse", os.O_RDWR))
        except OSError as fault:
            return f"/dev/fuse: {fault}"
        return None

    def __enter__(self) -> ChaosFs:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, str(self.folder), self._mode]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._line() != "mounted\n":
            self.__exit__(None, None, None)
            raise RuntimeError(f"{self.folder} was not mounted")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        while _libc.umount2(str(self.folder).encode(), 2) == 0:
            pass

    def _line(self) -> str:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], 30)[0]:
            raise TimeoutError("the file system does not answer")
        return self.process.stdout.readline()

    def _order(self, what: str, **given: Any) -> Any:
        assert self.process.stdin is not None
        with self._lock:
            self.process.stdin.write(json.dumps([what, given]) + "\n")
            self.process.stdin.flush()
            return json.loads(self._line())

    def fail(self, **rules: dict[str, Any]) -> None:
        """From now on, by operation (`read`, `write`, `fsync`, `rename` ...; `all` for each): `error` by its name,
        `delay_s`, `flip` (a bit of what is read), `torn` (so many bytes are written; `lies`: and all are said to be),
        `rate` (how often). None given: all is well."""
        self._order("faults", **{"*" if op == "all" else op: rule for op, rule in rules.items()})

    def hold(self, capacity_bytes: int) -> None:
        self._order("capacity", bytes=capacity_bytes)

    def cut_power(self, seed: int, keep: float = 0.5) -> None:
        """What nobody synced is gone, or there by chance. Whoever had files open should be dead."""
        self._order("cut", seed=seed, keep=keep)

    def counts(self) -> dict[str, int]:
        return self._order("ask")["counts"]  # type: ignore[no-any-return]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "forgetful")
