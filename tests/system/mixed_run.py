"""The mixed run: viewers of all sorts, origin and disk that fail, purges, reloads, kill -9; each answer is compared.

    .venv/bin/python tests/system/mixed_run.py --responses 1000000 --seed 1

Ends with a summary and 0, or with the wrong answers and 1. A wrong answer is a byte that the origin never gave for that
key, variant and viewer; a whole that is none; one older than its rules allow, or than a purge; a no to who may, or
a yes to who may not. Errors are answers too, counted apart. Needs root and /dev/fuse for the faults of the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop
from box import free_port
from chaos_fs import ChaosFs
from mixed_check import Answer, Asked, Judge, Wrong
from mixed_origin import (
    CODINGS,
    GENERIC,
    LANGUAGES,
    MEDIA,
    MIB,
    SIGNED,
    WEATHER,
    Key,
    Kind,
    Origin,
    make_keys,
    variant_of,
)
from mixed_viewer import Viewer
from running_box import RunningBox, policy_for

SECRET = b"a secret of thirty-two bytes ....."
N_VIEWERS = 32
# Nobody waits for longer; a viewer of an origin that says nothing does.
PATIENCE_S = 20.0
DISK: dict[str, dict[str, dict[str, Any]]] = {
    "well": {},
    "flips": {"read": {"flip": True, "rate": 0.3}},
    "torn": {"write": {"torn": 3000, "lies": True, "rate": 0.2}},
    "torn and told": {"write": {"torn": 3000, "rate": 0.02}},
    "EIO": {"read": {"error": "EIO", "rate": 0.02}, "write": {"error": "EIO", "rate": 0.02}},
    "broken": {"*": {"error": "EIO"}},
    "no sync": {"fsync": {"error": "EIO", "rate": 0.5}},
    "read-only": {op: {"error": "EROFS"} for op in ("write", "create", "fallocate", "rename", "rename2", "unlink")},
    "slow": {"read": {"delay_s": 0.2}, "write": {"delay_s": 0.2}},
    "stuck": {"*": {"delay_s": 5.0}},
}
DISK_SIZES = (64 * MIB, 40 * MIB)


class Run:
    def __init__(self, seed: int, work: Path, n_responses: int, n_keys: int, *, has_faults: bool) -> None:
        self.dice = random.Random(seed)
        self.work = work
        self.n_responses = n_responses
        self.has_faults = has_faults
        self.keys = make_keys(self.dice, n_keys)
        self.judge = Judge(self.keys)
        self.by_kind = {kind: [key for key in self.keys.values() if key.kind is kind] for kind in Kind}
        self.origin = Origin(self.keys, free_port(), random.Random(seed + 1))
        self.port = free_port()
        self.seen: Counter[str] = Counter()
        self.n_checked = 0
        self.n_bytes = 0
        self.problems: list[str] = []
        self.is_over = self.is_pausing = False
        self.disk: ChaosFs | None = None
        self.now = time.monotonic
        self._process = asyncio.Lock()
        self.loop = asyncio.get_running_loop()
        self._signatures: dict[str, str] = {}
        self._n = 0

    # -- requests ------------------------------------------------------------------------------------------------------

    def request(self) -> Asked:
        dice = self.dice
        throw = dice.random()
        self._n += 1
        if throw < 0.015:
            return self._echo()
        if throw < 0.06:
            return self._segment()
        kind = dice.choices(list(Kind), (40, 12, 12, 10, 14, 4, 8))[0]
        keys = self.by_kind[kind]
        key = keys[int(len(keys) * dice.random() ** 2)]
        if key.size > 500_000 and dice.random() < 0.5:
            key = keys[0]
        return self._get(key)

    def _get(self, key: Key) -> Asked:
        dice = self.dice
        fields: dict[str, str] = {}
        method, target, may = "GET", key.path, True
        if key.vary == "Accept-Language":
            fields["Accept-Language"] = dice.choice(LANGUAGES)
        elif key.vary == "Accept-Encoding":
            fields["Accept-Encoding"] = dice.choice(CODINGS)
        elif key.kind is Kind.PERSONAL:
            fields["Cookie"] = f"who=viewer{dice.randrange(50)}"
        elif key.kind is Kind.SIGNED:
            target, may = self._signed(key.path)
        throw = dice.random()
        if throw < 0.03:
            method = "HEAD"
        elif throw < 0.2 or (key.size > 500_000 and throw < 0.9):
            first = dice.randrange(max(1, key.size + 3))
            spans = (f"{first}-", f"{first}-{first + dice.randrange(30_000)}", f"-{dice.randrange(1, 5000)}", "0-0",
                     f"0-99,{first}-{first + 500},-7", f"{first}-{first + 10}")  # fmt: skip
            fields["Range"] = f"bytes={dice.choice(spans if key.size < 500_000 else spans[1:])}"
            if dice.random() < 0.2:
                version = max(0, key.current - dice.randrange(2))
                fields["If-Range"] = key.etag(version, variant_of(key, {n.lower(): v for n, v in fields.items()}))
        elif throw < 0.27 and key.has_etag:
            version = max(0, key.current - dice.randrange(3))
            fields["If-None-Match"] = key.etag(version, variant_of(key, {n.lower(): v for n, v in fields.items()}))
        elif throw < 0.28:
            fields["Cache-Control"] = dice.choice(("no-cache", "max-age=0", "only-if-cached"))
        return self._asked(key, method, target, fields, may=may, host=key.host)

    def _asked(
        self, key: Key | None, method: str, target: str, fields: dict[str, str], *, host: str, may: bool = True,
        sent: bytes = b"", nonce: str = "",
    ) -> Asked:  # fmt: skip
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        raw = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode() + sent
        lower = {name.lower(): value for name, value in fields.items()}
        return Asked(key, target.partition("?")[0], method, lower, raw, may=may, nonce=nonce, sent=sent)

    def _echo(self) -> Asked:
        body = self.dice.randbytes(self.dice.choice((0, 10, 3000, 40_000)))
        nonce = f"{self._n}"
        fields = {"X-Nonce": nonce}
        if self.dice.random() < 0.5:
            fields["Transfer-Encoding"] = "chunked"
            sent = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
        else:
            fields["Content-Length"] = str(len(body))
            sent = body
        asked = self._asked(None, "POST", "/echo", fields, host=GENERIC, sent=sent, nonce=nonce)
        asked.sent = body
        return asked

    def _segment(self) -> Asked:
        """Of a live channel: now and then one that isn't there yet."""
        channel = self.dice.choice(self.by_kind[Kind.LIVE])
        number = max(0, channel.current + 4 - self.dice.randrange(12))
        path = channel.path.rpartition("/")[0] + f"/segment-{number}.m4s"
        return self._asked(None, "GET", path, {}, host=MEDIA)

    def _signed(self, path: str) -> tuple[str, bool]:
        throw = self.dice.random()
        if throw < 0.05:
            return path, False
        good = self._signatures.get(path)
        if good is None:
            until = int(time.time()) + 40_000
            digest = hmac.new(SECRET, f"{path}|{until}".encode(), hashlib.sha256).hexdigest()
            good = self._signatures[path] = f"?sig={digest}&until={until}"
        if throw < 0.1:
            other = self.dice.choice(self.by_kind[Kind.SIGNED]).path
            return path + self._signed_for(other), other == path
        if throw < 0.15:
            return path + good[:-1] + str((int(good[-1]) + 1) % 10), False
        return path + good, True

    def _signed_for(self, path: str) -> str:
        while True:
            target, may = self._signed(path)
            if may:
                return target.removeprefix(path)

    # -- what an answer must be ----------------------------------------------------------------------------------------

    def wrong(self, asked: Asked | None, why: str, answer: Answer | None = None) -> None:
        told = "" if answer is None else f" {answer.status} {answer.fields} {answer.body[:80]!r}"
        since = "" if asked is None else f" asked {self.now() - asked.at:.3f} s ago"
        raw = b"" if asked is None else asked.raw[:300]
        versions = [round(self.now() - at, 3) for at in asked.key.versions[-4:]] if asked and asked.key else []
        floor = round(self.now() - asked.key.floor, 3) if asked and asked.key and asked.key.floor else None
        text = f"{why}: {raw!r}{since}; versions {versions} s ago, purged {floor} s ago;{told}"
        self.problems.append(f"{text} [origin {self.origin.weather}]")
        if len(self.problems) <= 5:
            print(f"WRONG {self.problems[-1]}", flush=True)

    def check(self, asked: Asked, answer: Answer) -> None:
        try:
            what = self.judge.sort_of(asked, answer)
        except Wrong as problem:
            self.wrong(asked, str(problem), answer)
            return
        self.seen[what] += 1
        if what[0] != "!":
            self.n_checked += 1
            self.n_bytes += len(answer.body)
            if self.n_checked >= self.n_responses:
                self.is_over = True

    # -- what goes on --------------------------------------------------------------------------------------------------

    def policy(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.origin.port}"
        quick = {"connect": "500ms", "head": "2s", "body": "2s"}
        credential = {
            "parameters": ["sig", "until"],
            "verify": {"scheme": "hmac", "keys": ["signer"], "signed": "{path}|{expires}"},
        }
        return policy_for(
            url, listen={"lan": {"address": f"127.0.0.1:{self.port}"}}, workers=2,
            cache={"memory": "24MiB", "disk": {"size": "64MiB"}},
            classes={"kept": {"store": "disk"}, "light": {"store": "memory"}},
            origins={
                "media": {"hosts": [MEDIA], "class": "kept", "timeouts": dict(quick)},
                "pages": {"from": [url], "hosts": [GENERIC], "profile": "generic", "timeouts": dict(quick),
                          "class": "kept"},
                "signed": {"from": [url], "hosts": [SIGNED], "class": "kept", "timeouts": dict(quick),
                           "credential": credential},
            },
        )  # fmt: skip

    async def watch(self) -> None:
        while not self.is_over:
            if self.is_pausing:
                await asyncio.sleep(0.01)
                continue
            try:
                _, viewer = await self.loop.create_connection(lambda: Viewer(self), "127.0.0.1", self.port)
            except OSError:
                self.seen["! no connection"] += 1
                await asyncio.sleep(0.02)
                continue
            assert isinstance(viewer, Viewer)
            while not viewer.gone.done():
                before = self.n_checked, viewer.waiting[0] if viewer.waiting else None
                await asyncio.wait([viewer.gone], timeout=PATIENCE_S)
                if not viewer.gone.done() and viewer.waiting and viewer.waiting[0] is before[1]:
                    self.wrong(viewer.waiting[0], f"no answer for {PATIENCE_S:.0f} s")
                    viewer.transport.abort()

    async def change(self) -> None:
        """What the origin has: playlists go on each half second, other keys now and then."""
        keys = [key for key in self.keys.values() if key.kind is not Kind.LIVE]
        quick = self.by_kind[Kind.STRICT] + self.by_kind[Kind.PAGE]
        while not self.is_over:
            for channel in self.by_kind[Kind.LIVE]:
                channel.versions.append(self.now())
            for _ in range(25):
                await asyncio.sleep(0.02)
                for key in (self.dice.choice(quick), self.dice.choice(quick), self.dice.choice(keys)):
                    key.versions.append(self.now())

    async def purge(self, box: RunningBox) -> None:
        while not self.is_over:
            await asyncio.sleep(0.05 + self.dice.random() * 0.3)
            throw, began = self.dice.random(), self.now()
            key = self.dice.choice([key for key in self.keys.values() if key.kind is not Kind.PERSONAL])
            gone = [key]
            if throw < 0.8:
                what = {"url": f"http://{key.host}{key.path}"}
            elif throw < 0.97:
                folder = self.dice.choice(("/s/", "/v/1", "/g/2", "/e/3", "/t/"))
                gone = [each for each in self.keys.values() if each.path.startswith(folder)]
                what = {"prefix": f"http://{gone[0].host}{folder}"}
            else:
                gone = [each for each in self.keys.values() if each.host == MEDIA]
                what = {"origin": "media"}
            for each in gone:
                each.versions.append(began)  # what is purged has changed
            is_settled = True
            try:
                await asyncio.to_thread(box.control, "cache purge", **what)
            except RuntimeError as refusal:
                if "will be written later" not in str(refusal):
                    self.seen["! purges refused"] += 1
                    continue
                is_settled = False  # gone, but would be back after a power cut: the answer says so
            except (OSError, ValueError):
                continue  # it was killed meanwhile
            self.seen["purges" if is_settled else "! purges not on the disk yet"] += 1
            for each in gone:
                each.floor = began
                if is_settled:
                    each.settled_floor = began

    async def disturb(self, box: RunningBox) -> None:
        """Origin, disk, reloads and kill -9, each in its own time."""

        async def each(least_s: float, most_s: float, step: Callable[[], Awaitable[None]]) -> None:
            while not self.is_over:
                await asyncio.sleep(self.dice.uniform(least_s, most_s))
                await step()

        await asyncio.gather(
            each(0.3, 2.0, self._origin_weather), each(0.3, 3.0, self._disk_weather),
            each(1.0, 4.0, lambda: self._one_at_a_time(self._reload, box)),
            each(4.0, 12.0, lambda: self._one_at_a_time(self._kill, box)),
        )  # fmt: skip

    async def _one_at_a_time(self, step: Callable[[RunningBox], Awaitable[None]], box: RunningBox) -> None:
        """A reload is no start: SIGHUP ends a process that has not come so far yet."""
        async with self._process:
            await step(box)

    async def _origin_weather(self) -> None:
        weather = self.dice.choices(list(WEATHER), (5, 8, 1, 2, 0.7, 0.7))[0]
        self.seen[f"weather: {weather}"] += 1
        await self.origin.change_weather(weather)

    async def _disk_weather(self) -> None:
        if self.disk is None:
            return
        weights = (8, 4, 3, 1, 1, 1, 1, 1, 1, 0.5)
        weather = self.dice.choices(list(DISK), weights)[0]
        self.seen[f"disk: {weather}"] += 1
        await asyncio.to_thread(self.disk.fail, **DISK[weather])
        await asyncio.to_thread(self.disk.hold, self.dice.choices(DISK_SIZES, (4, 1))[0] + 8 * MIB)

    async def _reload(self, box: RunningBox) -> None:
        changes: dict[str, Any] = {"limits": {"idle_timeout": f"{60 + self.dice.randrange(60)}s"}}
        throw = self.dice.random()
        if throw < 0.3:
            changes["origins"] = {"pages": {"class": self.dice.choice(("kept", "light"))}}
        elif throw < 0.5:
            other = {"from": ["http://127.0.0.1:9"], "hosts": [f"{self.dice.randrange(99)}.x"]}
            changes["origins"] = {"other": other}
        try:
            said = await asyncio.to_thread(box.reload, changes)
        except (TimeoutError, OSError):
            self.problems.append("a reload was not answered")
            return
        self.seen["reloads" if "taken over" in said else "! reloads refused"] += 1

    async def _kill(self, box: RunningBox) -> None:
        self.is_pausing = self.dice.random() < 0.5  # with viewers under way, or between them
        await asyncio.to_thread(box.kill)  # a disk that hangs holds it up
        for key in self.keys.values():
            key.floor = key.settled_floor
        began = self.now()
        await asyncio.to_thread(box.__enter__)
        self.seen["kill -9"] += 1
        self.seen["longest start, ms"] = max(self.seen["longest start, ms"], int((self.now() - began) * 1000))
        self.is_pausing = False

    async def tell(self) -> None:
        while not self.is_over:
            await asyncio.sleep(15)
            print(f"{self.n_checked} checked, {len(self.problems)} wrong", flush=True)

    async def main(self) -> bool:
        began, cpu = self.now(), os.times()
        with ExitStack() as stack:
            box = RunningBox(self.work, self.policy())
            folder = box.state / "credentials"
            folder.mkdir(parents=True)
            (folder / "signer.secret").write_bytes(SECRET + b"\n")
            why = ChaosFs.why_not()
            if self.has_faults and why is None:
                self.disk = stack.enter_context(ChaosFs(box.state / "cache"))
                self.disk.hold(DISK_SIZES[0] + 8 * MIB)
            await self.origin.start()
            await asyncio.to_thread(stack.enter_context, box)
            tasks = [self.watch() for _ in range(N_VIEWERS)] + [self.change(), self.purge(box), self.tell()]
            if self.has_faults:
                tasks.append(self.disturb(box))
            await self._all(tasks)
            if self.disk is not None:
                self.disk.fail()
            for fault in ("Traceback", "never retrieved", "internal fault", "Segmentation"):
                if fault in box.output:
                    self.problems.append(f"{fault} in the log:\n{box.output[box.output.index(fault) - 300 :][:3000]}")
            stats = box.stats() if box.process.poll() is None else {}
            await self.origin.stop()
        self._sum_up(stats, self.now() - began, cpu)
        return not self.problems

    async def _all(self, tasks: list[Any]) -> None:
        running = [asyncio.ensure_future(each) for each in tasks]
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        self.is_over = True
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for each in done:
            if not each.cancelled() and each.exception() is not None:
                raise each.exception()  # type: ignore[misc]

    def _sum_up(self, stats: dict[str, Any], took_s: float, cpu: os.times_result) -> None:
        told = ", ".join(f"{name} {n}" for name, n in sorted(self.seen.items()))
        print(f"answers and events: {told}")
        print(f"origin: {dict(sorted(self.origin.counts.items()))}")
        if self.disk is None:
            print(f"disk without faults: {ChaosFs.why_not() or 'as asked'}")
        names = ("hits", "misses", "collapsed", "passed", "refused", "evictions", "disk_hits", "disk_writes",
                 "disk_corrupt", "disk_errors", "disk_evictions", "upstream_resumed")  # fmt: skip
        print(f"the last process: { {name: stats.get(name) for name in names} }")
        print(f"{took_s:.0f} s, {self.n_bytes >> 20} MiB compared, {self.n_checked / took_s:.0f} responses/s")
        print(f"{self.n_checked} responses checked, {len(self.problems)} wrong")


def mixed_run(seed: int, work: Path, n_responses: int, n_keys: int, *, has_faults: bool = True) -> Run:
    """Runs it; `problems` of what is given back says how it went."""

    async def main() -> Run:
        run = Run(seed, work, n_responses, n_keys, has_faults=has_faults)
        await run.main()
        return run

    return uvloop.run(main())


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares each answer of a box under faults with what the origin has.")
    parser.add_argument("--responses", type=int, default=1_000_000, help="so many checked answers (default 1000000)")
    parser.add_argument("--seed", type=int, default=0, help="repeats a run's choices, not its timing")
    parser.add_argument("--keys", type=int, default=300, help="how many URLs, in about (default 300)")
    parser.add_argument("--no-faults", action="store_true", help="only viewers, changes and purges")
    arguments = parser.parse_args()
    seed = arguments.seed or random.randrange(1, 1 << 30)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mixed-run-") as folder:
        run = mixed_run(seed, Path(folder), arguments.responses, arguments.keys, has_faults=not arguments.no_faults)
        if run.problems:
            kept = Path(tempfile.gettempdir()) / f"mixed-run-{seed}.log"
            kept.write_bytes((Path(folder) / "daemon.log").read_bytes())
            print(f"the daemon's log: {kept}")
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main())


