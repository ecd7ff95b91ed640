"""What players and operators are told of relays: announcements, a playlist, metrics. Reads flows, changes none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from accelerator import clock
from accelerator.dataplane import RELAY_COUNTERS
from accelerator.io.links import Link
from accelerator.policy.addresses import format_address
from accelerator.services.relays.announce import Session
from accelerator.services.relays.flow import Flow

RELAY_COUNTER_HELP: Mapping[str, str] = {
    **{name: text for _, name, text in RELAY_COUNTERS},
    "sent_packets": "packets sent, one for each receiver, by the outputs that are open",
    "send_dropped": "packets that were not sent: full or refusing sockets, too large, behind",
    "viewer_bytes": "bytes of the stream sent to HTTP viewers",
    "viewer_skips": "times that an HTTP viewer was too slow, and went on at a later random access point",
}


def sessions(flows: Iterable[Flow], links: Mapping[str, Link]) -> list[Session]:
    """What is announced: open output groups, each on its link."""
    found = []
    for flow in flows:
        for outlet in flow.outlets if flow.row.announce else ():
            link = links.get(outlet.row.interface or "")
            source = (
                next((each for each in link.addresses if each.version == (6 if outlet.is_v6 else 4)), None)
                if (link is not None)
                else None
            )
            if outlet.row.kind == "group" and outlet.index is not None and source is not None:
                host, port = outlet.row.targets[0]
                session = Session(
                    flow.row.announce, host, port, flow.sends_rtp(outlet), flow.payload_type(outlet), outlet.row.ttl,
                    outlet.row.interface or "", str(source), flow.carries_ts,
                )  # fmt: skip
                found += [session] if session.can_be_described else []
    return found


def playlist(flows: Iterable[Flow], bases: Iterable[str]) -> str:
    """Every output group and HTTP path, as an M3U for players. `bases`: http://HOST:PORT of the listeners."""
    lines = ["#EXTM3U"]
    for flow in flows:
        title = (flow.row.announce or flow.row.name).replace(",", " ")
        for outlet in flow.outlets:
            if outlet.row.kind == "group":
                host, port = outlet.row.targets[0]
                is_rtp = flow.sends_rtp(outlet)
                lines += [f"#EXTINF:-1,{title}", f"{'rtp' if is_rtp else 'udp'}://@{format_address(host, port)}"]
        for row in flow.row.outputs:
            if row.kind == "http":
                lines += [text for base in bases for text in (f"#EXTINF:-1,{title}", f"{base}{row.path}")]
    return "\n".join(lines) + "\n"


def metrics(flows: Iterable[Flow]) -> list[tuple[str, dict[str, int], dict[str, float]]]:
    """(name, counters, gauges) of each relay."""
    rows = []
    now_ns = clock.monotonic_ns()
    for flow in flows:
        summary = flow.summary(now_ns)
        sent = [flow.output_counters(each) for each in flow.outlets]
        counters = flow.counters()
        counters["sent_packets"] = sum(each["packets"] for each in sent)
        counters["send_dropped"] = summary["send_dropped"]
        http = flow.http_counters()
        counters["viewer_bytes"], counters["viewer_skips"] = http["bytes"], http["skips"]
        gauges = {
            "live": float(flow.is_live), "receivers": float(flow.n_receivers), "viewers": float(flow.n_viewers),
            "jitter_ms": summary["jitter_ms"], "bitrate_bps": float(summary["bitrate_bps"]),
            "joined": float(summary["joined"]),
        }  # fmt: skip
        rows.append((flow.row.name, counters, gauges))
    return rows
