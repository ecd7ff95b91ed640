"""Groups that viewers ask for by address, as of udpxy: `/udp/[SOURCE@]GROUP:PORT`, `/rtp/...`. Only what the policy's
`udpxy` lists becomes a relay; opening and joining is relays.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from accelerator.policy.addresses import IpAddress
from accelerator.policy.compile import HOLD_HTTP_S, RelayOutputRow, RelayRow, UdpxyRow
from accelerator.policy.relay_addresses import needs_source, parse_relay_url, stays_on_link
from accelerator.policy.relay_rules import REORDER_S, Input

# Of a path: far more than an address with its source needs.
PATH_MAX = 160


def row_of(path: str, listed: UdpxyRow) -> RelayRow | int:
    """The relay that a path asks for; 404: it is none, 403: the policy doesn't list it."""
    scheme, _, rest = path.lstrip("/").partition("/")
    if scheme not in ("udp", "rtp") or not path.startswith("/") or len(path) > PATH_MAX:
        return 404
    try:
        url = parse_relay_url(f"{scheme}://{rest.replace('%40', '@').rstrip('/')}")
    except ValueError:
        return 404
    group = ip_address(url.host)
    if not group.is_multicast or not _is_in(group, listed.groups):
        return 403
    if url.source and listed.sources and not _is_in(ip_address(url.source), listed.sources):
        return 403
    if stays_on_link(group) and listed.interface is None:
        return 404
    if needs_source(group) and not url.source:
        return 404  # RFC 4607: without a source there is no such channel
    return RelayRow(
        name=f"{scheme}/{str(url).partition('://')[2]}",
        inputs=(Input(0, "media", url.host, url.port, url.source, listed.interface, scheme == "rtp"),),
        is_backup=False,
        is_always=False,
        linger_s=listed.linger_s,
        failover_ns=500_000_000,
        wait_ns=int(REORDER_S * 1e9),
        # With a source that is asked for, its own packets alone; without, those of whom the policy lists.
        sources=() if url.source else listed.sources,
        payload_type=-1,
        receivers_max=20_000,
        bitrate_bps=listed.bitrate_bps,
        outputs=(
            RelayOutputRow(
                kind="http", targets=(), path=path, interface=None, ttl=1, dscp=0, source_port=0, zones=(), rtp="strip",
                hold_ns=int(HOLD_HTTP_S * 1e9), rate_bps=0, window_bytes=listed.window_bytes,
            ),
        ),
    )  # fmt: skip


def _is_in(address: IpAddress, nets: Iterable[str]) -> bool:
    return any(net.version == address.version and address in net for net in map(ip_network, nets))
