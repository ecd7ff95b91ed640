"""The policy's `relays` as typed, frozen values. No YAML, no check across keys: relay_rules.py has those."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from accelerator.policy import relay_addresses
from accelerator.policy.addresses import Address
from accelerator.policy.values import (
    InterfaceName,
    Name,
    Network,
    Section,
    empty_means,
    rate_between,
    rate_or,
    size_between,
    text_of,
    time_between,
    whole_between,
)

# Of a relay, half of what the data plane has: a reload may replace all of them at once without a gap.
OUTPUTS_MAX = 8
# Media and repair streams together (ext/relay.pxd MAX_LEGS).
LEGS_MAX = 4
RELAYS_MAX = 128
RECEIVERS_MAX = 20_000
# 3 s of 8 Mbit/s, beside a quarter that is spare: more than a group of pictures.
WINDOW_BYTES = 4 << 20
CHANNELS_MAX = 32

RelayUrl = Annotated[
    relay_addresses.RelayUrl,
    *text_of(
        relay_addresses.parse_relay_url, r"^(rtp|udp|srt|rist)://.+:[0-9]{1,5}/?$", "rtp://10.1.0.1@239.1.1.1:5004"
    ),
]
Group = Annotated[Address, *text_of(relay_addresses.parse_group, r"^.+:[0-9]{1,5}$", "239.2.1.1:5004")]
Receiver = Annotated[Address, *text_of(relay_addresses.parse_receiver, r"^.+:[0-9]{1,5}$", "10.12.0.7:5004")]
StreamId = Annotated[str, *text_of(relay_addresses.parse_stream_id, r"^[!-~]{1,512}$", "live/hall")]
StreamPath = Annotated[str, *text_of(relay_addresses.parse_stream_path, r"^/[^?# ]*$", "/relay/hall.ts")]
Title = Annotated[str, *text_of(relay_addresses.parse_title, example="Hall")]
Dscp = Annotated[str, *text_of(relay_addresses.parse_dscp, example="AF41")]


class RelayOutput(Section):
    group: Group | None = Field(default=None, description="A group and port to send to; one of group, unicast, http.")
    unicast: tuple[Receiver, ...] | None = Field(
        default=None,
        max_length=RECEIVERS_MAX,
        description="Single receivers, to which accelctl relay add-receiver adds others; [] for those only.",
    )
    http: StreamPath | None = Field(default=None, description="The path of an endless stream for HTTP viewers.")
    interface: InterfaceName | None = Field(
        default=None, description="Where a group is sent; for single receivers, whose link's speed bounds bursts."
    )
    ttl: Annotated[int, *whole_between(1, 255)] = Field(
        default=8, description="Routers that a packet may pass, plus one; 1 stays on the link."
    )
    dscp: Dscp = Field(default="CS0", description="The mark for the network's queues: AF41, EF, 0 to 63.")
    source_port: Annotated[int, *whole_between(0, 65_535)] = Field(
        default=0, description="The UDP port that packets come from; 0: any."
    )
    zones: Annotated[tuple[Name, ...], empty_means(tuple)] = Field(
        default=(),
        max_length=64,
        description="Whom this output is for: HTTP viewers and receivers of other zones are refused.",
    )
    rtp: Literal["keep", "strip", "restamp"] = Field(
        default="keep", description="keep: as it came; strip: without the RTP header; restamp: with one of our own."
    )
    hold: Annotated[float, *time_between("0ms", "500ms")] | None = Field(
        default=None,
        description="How long packets may wait to leave together; 0ms: each at once; left out: 5ms, of http 20ms.",
    )
    rate: Annotated[int, *rate_or("measured", "0bit/s", "10Gbit/s")] | None = Field(
        default=None, description="Packets are spaced by this rate, or the measured one; left out: as they come."
    )
    window: Annotated[int, *size_between("1MiB", "256MiB")] = Field(
        default=WINDOW_BYTES,
        description="Of http: the memory of the stream. Viewers who are further behind skip to a later key frame.",
    )


class Connection(Section):
    mode: Literal["caller", "listener"] = Field(
        default="caller",
        description="caller: connects to the input's address; listener: it is an own one, and the sender connects.",
    )
    latency: Annotated[float, *time_between("20ms", "8s")] = Field(
        default=0.25, description="How long a lost packet may be asked for again; everything is delayed by it."
    )
    passphrase: Name | None = Field(
        default=None, description="NAME.passphrase of the credentials encrypts; left out: nothing is encrypted."
    )
    stream_id: StreamId | None = Field(
        default=None, description="SRT: what a caller asks for, and what a listener's sender must ask for."
    )
    profile: Literal["main", "simple"] = Field(
        default="main", description="RIST: main (TR-06-2), or simple (TR-06-1), which can't encrypt."
    )


class Retransmit(Section):
    from_: Receiver = Field(
        alias="from", description="Who is asked for missing packets (RTCP feedback): the sender, or its repair server."
    )
    payload_type: Annotated[int, *whole_between(0, 127)] = Field(
        default=97, description="The RTP payload type of what is sent again (RFC 4588)."
    )
    port: Annotated[int, *whole_between(0, 65_535)] = Field(
        default=0, description="The own UDP port that asks, where answers may come too; 0: any."
    )


class Relay(Section):
    from_: tuple[RelayUrl, ...] = Field(
        alias="from",
        min_length=1,
        max_length=LEGS_MAX,
        description="Where the packets come from; several are legs of one stream or backups, as mode says.",
    )
    interface: InterfaceName | None = Field(
        default=None, description="Where groups are joined; left out: where the kernel's routes say."
    )
    interfaces: Annotated[tuple[InterfaceName, ...], empty_means(tuple)] = Field(
        default=(), max_length=LEGS_MAX, description="Instead of interface: one for each input, in their order."
    )
    connection: Connection | None = Field(
        default=None, description="How srt:// and rist:// inputs are reached; left out: as caller, unencrypted."
    )
    mode: Literal["legs", "backup"] = Field(
        default="legs",
        description="legs: all carry the same packets (SMPTE 2022-7), merged; backup: the first one that lives.",
    )
    join: Literal["on-demand", "always"] = Field(
        default="on-demand", description="on-demand: groups are joined while somebody receives; always: all the time."
    )
    linger: Annotated[float, *time_between("0s", "1d")] = Field(
        default=10.0, description="How long groups stay joined after the last receiver has gone."
    )
    failover: Annotated[float, *time_between("50ms", "1m")] = Field(
        default=0.5, description="An input that is silent for so long is replaced by its backup."
    )
    reorder: Annotated[float, *time_between("0ms", "5s")] | None = Field(
        default=None,
        description="How long a missing packet is waited for; left out: 50ms; legs, retransmit: 250ms; fec: 600ms.",
    )
    sources: Annotated[tuple[Network, ...], empty_means(tuple)] = Field(
        default=(), max_length=8, description="Whose packets are taken; left out: the input's source, else anybody's."
    )
    payload_type: Annotated[int, *whole_between(0, 127)] | None = Field(
        default=None, description="The one RTP payload type that is taken; left out: any."
    )
    fec: Literal["none", "columns", "both"] = Field(
        default="none",
        description="Repair packets (SMPTE 2022-1) of the first input: columns on its port + 2, rows on its port + 4.",
    )
    retransmit: Retransmit | None = Field(
        default=None, description="Missing packets are asked for again (RFC 4585, RFC 4588); left out: they are not."
    )
    announce: Title | None = Field(
        default=None, description="The name by which its groups are announced (SAP); left out: they are not."
    )
    receivers: Annotated[int, *whole_between(1, RECEIVERS_MAX)] = Field(
        default=RECEIVERS_MAX, description="Receivers at once, of all outputs."
    )
    bitrate: Annotated[int, *rate_between("1kbit/s", "100Gbit/s")] | None = Field(
        default=None, description="What comes beyond this is dropped before it is looked at; left out: no bound."
    )
    to: Annotated[tuple[RelayOutput, ...], empty_means(tuple)] = Field(
        default=(), max_length=OUTPUTS_MAX, description="Where it goes: groups, single receivers, HTTP."
    )


class Udpxy(Section):
    groups: Annotated[tuple[Network, ...], empty_means(tuple)] = Field(
        default=(), max_length=64, description="Groups that viewers may ask for; none: nobody may ask for any."
    )
    sources: Annotated[tuple[Network, ...], empty_means(tuple)] = Field(
        default=(), max_length=8, description="Whose packets they may have; left out: anybody's in those groups."
    )
    zones: Annotated[tuple[Name, ...], empty_means(tuple)] = Field(
        default=(), max_length=64, description="Who may ask; left out: every viewer of the listeners."
    )
    interface: InterfaceName | None = Field(default=None, description="Where groups are joined.")
    channels: Annotated[int, *whole_between(1, CHANNELS_MAX)] = Field(
        default=16, description="Groups that viewers may have joined at once; one more is refused."
    )
    linger: Annotated[float, *time_between("0s", "1d")] = Field(
        default=10.0, description="How long a group stays joined after its last viewer has gone."
    )
    bitrate: Annotated[int, *rate_between("1kbit/s", "100Gbit/s")] | None = Field(
        default=None, description="Of each group; what comes beyond this is dropped; left out: no bound."
    )
    window: Annotated[int, *size_between("1MiB", "256MiB")] = Field(
        default=WINDOW_BYTES, description="The memory of each group's stream."
    )
