"""Marks of answers by policy, over IPv4 and IPv6."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any

import pytest
from recording_origin import RecordingOrigin
from running_box import HOST, RunningBox, policy_for
from sniffing import sniffing, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def test_viewers_get_their_classs_mark_over_both_families(tmp_path: Path) -> None:
    with RecordingOrigin() as origin:
        url = f"http://127.0.0.1:{origin.port}"
        sections: dict[str, Any] = {
            "classes": {"webcast": {"dscp": "AF31"}, "library": {}},
            "listen": {"lan": {"address": "127.0.0.1:0"}, "both": {"address": "[::]:0"}},
            "origins": {
                "live": {"from": [url], "hosts": ["live.example"], "class": "webcast"},
                "media": {"class": "library"},
            },
        }
        with RunningBox(tmp_path, policy_for(url, **sections)) as box:
            ports = {row["name"]: int(row["address"].rpartition(":")[2]) for row in box.status()["listeners"]}
            for name, address in (("lan", "127.0.0.1"), ("both", "::1")):
                with sniffing(ports[name]) as sniffer:
                    viewer = http.client.HTTPConnection(address, ports[name], timeout=20)
                    for host, dscp in (("live.example", 26), (HOST, 0), ("live.example", 26)):
                        viewer.request("GET", f"/{name}{dscp}", headers={"Host": host})
                        reply = viewer.getresponse()
                        reply.read()
                        seen = sniffer.marks()
                        assert seen, (address, host)
                        assert set(seen) == {dscp}, (address, host, reply.status)
                    viewer.close()
