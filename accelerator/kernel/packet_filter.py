"""Our own nft table: packet rules as nft's text, loaded whole in one transaction, and whether it is still what was
loaded. Other tables are neither read nor written. Runs `nft`, which speaks JSON: docs/decisions/0222."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Any

from accelerator.kernel.objects import NFT_TABLE, PacketRule

_NFT = "/usr/sbin/nft"
_TIMEOUT_S = 5.0
_CHANGING = frozenset({"handle", "packets", "bytes", "metainfo"})
# As each hook's mangle priority (libnftables): before routing decides, and before NAT changes addresses.
_PRIORITIES = {"prerouting": -150, "input": -150, "forward": -150, "output": -150, "postrouting": -150}
_TYPES = {"output": "route"}  # a mark that is set there must lead to another route


class FilterError(Exception):
    """nft can't be run, or refuses: one line."""


class PacketFilter:
    """Lives in one event loop; one pass at a time."""

    def __init__(self) -> None:
        # The text that was loaded last, and what nft listed of it then; None: not known, or nothing.
        self._loaded = ""
        self._listed: tuple[str, int] | None = None

    async def look(self, rules: Sequence[PacketRule]) -> bool:
        """Whether the table is what these rules make it. FilterError: that can't be found out."""
        if not rules:
            return await listed() is None
        return self._loaded == script(rules) and self._listed is not None and await listed() == self._listed

    async def load(self, rules: Sequence[PacketRule]) -> None:
        """Puts the table there, or takes it away, as one transaction: no packet ever meets half of it."""
        text = script(rules)
        await run(text)
        there = await listed() if rules else None
        # Between the two somebody may have flushed it, which must not count as what was loaded.
        is_whole = there is not None and there[1] == text.count("\nadd rule ")
        self._listed = there if is_whole else None
        self._loaded = text if rules else ""

    async def rows(self) -> list[str]:
        """The table as nft writes it, counters included."""
        try:
            return (await _nft("list", "table", "inet", NFT_TABLE)).decode(errors="replace").splitlines()
        except FilterError:
            return []


async def listed(table: str = NFT_TABLE) -> tuple[str, int] | None:
    """A digest of what is in a table, less what packets and time change, and how many rules these are. None: there is
    no such table."""
    try:
        found = json.loads(await _nft("-j", "list", "table", "inet", table))
    except FilterError as error:
        if "No such file" in str(error):
            return None
        raise
    except ValueError as error:
        raise FilterError(f"nft: {error}") from None
    rows = found.get("nftables", [])
    digest = hashlib.sha256(json.dumps(_plain(rows), sort_keys=True).encode()).hexdigest()
    return digest, sum("rule" in row for row in rows)


def script(rules: Iterable[PacketRule]) -> str:
    """What nft is told. Every value has been checked, names of interfaces are quoted."""
    chains: dict[str, list[str]] = {}
    for rule in rules:
        for family in _families(rule):
            chains.setdefault(rule.hook, []).append(_line(rule, family))
    lines = [f"add table inet {NFT_TABLE}", f"delete table inet {NFT_TABLE}"]
    if chains:
        lines.append(f"add table inet {NFT_TABLE}")
    for hook, texts in chains.items():
        kind = _TYPES.get(hook, "filter")
        head = f"type {kind} hook {hook} priority {_PRIORITIES[hook]}; policy accept;"
        lines.append(f"add chain inet {NFT_TABLE} {hook} {{ {head} }}")
        lines += [f"add rule inet {NFT_TABLE} {hook} {text}" for text in texts]
    return "\n".join(lines) + "\n"


def _families(rule: PacketRule) -> tuple[str, ...]:
    """Which of ip and ip6 the rule is for; ("",): it is the same for both."""
    named = {ip_network(each).version for each in (*rule.source, *rule.destination)}
    if rule.tproxy is not None:
        named &= {6 if rule.tproxy.startswith("[") else 4}
        named = named or ({6 if rule.tproxy.startswith("[") else 4} if not (rule.source or rule.destination) else set())
    elif not named and (rule.dscp is not None or rule.dscp_is is not None or rule.destination_not):
        named = {4, 6}
    return tuple({4: "ip", 6: "ip6"}[each] for each in sorted(named)) if named or rule.tproxy else ("",)


def _line(rule: PacketRule, family: str) -> str:
    version = {"ip": 4, "ip6": 6}.get(family)

    def of_family(networks: Sequence[str]) -> str:
        return ", ".join(each for each in networks if ip_network(each).version == version)

    words: list[str] = []
    if rule.interface_in is not None:
        words.append(f'iifname "{quoted(rule.interface_in)}"')
    if rule.interface_out is not None:
        words.append(f'oifname "{quoted(rule.interface_out)}"')
    if family:
        words.append(f"meta nfproto {'ipv4' if version == 4 else 'ipv6'}")
    for key, networks in (("saddr", rule.source), ("daddr", rule.destination), ("daddr !=", rule.destination_not)):
        if listed := of_family(networks):
            words.append(f"{family} {key} {{ {listed} }}")
    if rule.dscp_is is not None:
        words.append(f"{family} dscp {rule.dscp_is}")
    if rule.protocol is not None:
        words.append(f"meta l4proto {rule.protocol}")
    for key, ports in (("dport", rule.ports), ("sport", rule.source_ports)):
        if ports:
            words.append(f"{rule.protocol} {key} {{ {', '.join(map(str, sorted(set(ports))))} }}")
    if rule.mark_is is not None:
        words.append(f"meta mark {rule.mark_is:#x}")
    if rule.has_socket:
        words.append("socket transparent 1")
    words.append("counter")
    if rule.dscp is not None:
        words.append(f"{family} dscp set {rule.dscp}")
    if rule.priority is not None:
        words.append(f"meta priority set {rule.priority}")
    if rule.tproxy is not None:
        words.append(f"tproxy {family} to {rule.tproxy}")
    if rule.mark is not None:
        words.append(f"meta mark set {rule.mark:#x}")
    if rule.verdict != "continue":
        words.append(rule.verdict)
    return " ".join(words)


def quoted(name: str) -> str:
    """nft knows no escapes within quotes; the kernel takes any name, so what could end the quotes matches one of any
    character."""
    return name.replace('"', "?").replace("\\", "?").replace("*", "?").replace("\n", "?")


def _plain(value: Any) -> Any:
    """Without handles and counts, which others' changes and packets change."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key not in _CHANGING}
    return [_plain(each) for each in value] if isinstance(value, list) else value


async def run(text: str) -> None:
    """One transaction."""
    await _nft("-f", "-", given=text.encode())


async def _nft(*words: str, given: bytes = b"") -> bytes:
    process: asyncio.subprocess.Process | None = None
    try:
        process = await asyncio.create_subprocess_exec(
            _NFT, *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(_TIMEOUT_S):
            out, wrong = await process.communicate(given)
    except TimeoutError:
        if process is not None:
            process.kill()
        raise FilterError("nft didn't end in time") from None
    except asyncio.CancelledError:
        # It must not change anything after what is done next.
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        raise
    except OSError as error:
        raise FilterError(f"nft can't be run: {error.strerror}") from None
    if process.returncode:
        line = wrong.decode(errors="replace").strip().splitlines()
        raise FilterError(f"nft: {line[0] if line else process.returncode}")
    return out
