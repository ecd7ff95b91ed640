"""The WAN is cut: the link goes down in a namespace. Stored video plays on, live fails over, the return is calm."""

from __future__ import annotations

import collections
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_box import RunningBox, policy_for, wait_for

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import netns

WHY = netns.why_not()
pytestmark = [
    pytest.mark.slow, pytest.mark.netns, pytest.mark.timeout(120), pytest.mark.skipif(WHY is not None, reason=str(WHY)),
]  # fmt: skip
SEGMENT = os.urandom(200_000)
VOD = [f"/vod/{n}.m4s" for n in range(20)]
PLAYLIST_S = 3.0  # what is allowed until the 504 comes
RETURN_S = 5.0

# The origin, in its own namespace: a counter of requests by path, a playlist that goes on, segments.
ORIGIN = """
import collections, json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
asked = collections.Counter()
segment = open(sys.argv[1], 'rb').read()
class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        if self.path == '/asked':
            body, extra = json.dumps(asked).encode(), ('Cache-Control', 'no-store')
        elif self.path == '/live.m3u8':
            body = b'#EXTM3U\\n#EXT-X-TARGETDURATION:1\\n#EXT-X-MEDIA-SEQUENCE:%d\\n#EXTINF:1,\\ns.m4s\\n' % time.time()
            extra = ('X-Kind', 'live')
        else:
            body, extra = segment, ('Cache-Control', 'max-age=%d' % (1 if 'short' in self.path else 3600))
        asked[self.path] += 1
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.send_header('ETag', '"one"') if body is segment else None
        self.send_header(*extra)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 256
Server(('10.0.0.2', 8000), Handler).serve_forever()
"""


class NamespacedBox(RunningBox):
    """Its process, and our connections to it, are in `namespace`. Control goes by a file, as ever."""

    namespace: netns.Namespace

    def spawn(self) -> RunningBox:
        return self.namespace.call(super().spawn)

    def connect(self, *arguments: Any, **named: Any) -> Any:
        return self.namespace.call(lambda: super(NamespacedBox, self).connect(*arguments, **named))


class Site:
    def __init__(self, work: Path, topology: netns.Topology) -> None:
        self.source, self.inside, _ = topology.proxy()
        work.mkdir(exist_ok=True)
        (work / "segment").write_bytes(SEGMENT)
        (work / "origin.py").write_text(ORIGIN)
        self.origin = self.source.popen(sys.executable, str(work / "origin.py"), str(work / "segment"))
        policy = policy_for("http://10.0.0.2:8000", cache={"disk": {"size": "128MiB"}})
        policy["origins"]["media"]["timeouts"] = {"connect": "1s", "head": "1s", "body": "2s"}
        self.box = NamespacedBox(work, policy)
        self.box.namespace = self.inside

    def asked(self) -> collections.Counter[str]:
        text = self.source.run("curl", "-s", "http://10.0.0.2:8000/asked")
        return collections.Counter(json.loads(text))

    def link(self, state: str) -> None:
        self.source.ip("link", "set", "eth0", state)

    def fetch(self, path: str) -> tuple[int, bytes, float]:
        began = time.monotonic()
        response = self.box.get(path)
        return response.status, response.body, time.monotonic() - began


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with netns.Topology() as topology:
        site = Site(tmp_path / "work", topology)
        try:
            with site.box:
                wait_for(lambda: site.fetch("/up")[0] == 200, seconds=20)
                yield site
        finally:
            site.origin.kill()
            site.origin.wait()


@pytest.mark.fault(26)
def test_a_cut_of_the_wan(site: Site) -> None:
    short = [path.replace("vod", "short") for path in VOD]
    for path in VOD + short:
        assert site.fetch(path)[:2] == (200, SEGMENT)
    assert site.fetch("/live.m3u8")[0] == 200
    site.link("down")
    cut = time.monotonic()
    took, live = [], []
    while time.monotonic() - cut < 8:
        for path in (VOD + short)[::4]:
            status, body, seconds = site.fetch(path)
            assert (status, body == SEGMENT) == (200, True), path
            took.append((seconds, path))
        status, _, seconds = site.fetch("/live.m3u8")
        live.append((time.monotonic() - cut, status, seconds))
    # What is fresh never waits; what is over and may be served stale waits for one time-out, until the breaker opens.
    assert max(seconds for seconds, path in took if "vod" in path) < 0.5
    assert max(seconds for seconds, path in took) < PLAYLIST_S
    last_good = max((at for at, status, _ in live if status == 200), default=0.0)
    assert last_good < 2.5 + 1.0, live  # half a target duration fresh, one stale; and the answer's own time
    assert {status for at, status, _ in live if at > 4} <= {503, 504}, live
    assert max(seconds for _, status, seconds in live if status != 200) < PLAYLIST_S
    site.link("up")
    back = time.monotonic()
    before = site.asked()
    wait_for(lambda: site.fetch("/live.m3u8")[0] == 200, seconds=20)
    assert time.monotonic() - back < RETURN_S + 1.0, "a breaker's trial comes within 4 s"
    began = time.monotonic()
    for path in VOD + short:
        assert site.fetch(path)[:2] == (200, SEGMENT)
    assert time.monotonic() - began < RETURN_S
    grown = site.asked() - before
    assert all(grown[path] <= 1 for path in VOD + short), grown
    assert all(grown[path] == 0 for path in VOD), grown
