"""What a name may resolve to, what literals and pins may say, and that our own listeners are never reached."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import Any

import pytest
from upstream_box import run

from accelerator.errors import OriginError
from accelerator.io.origin import OriginCounters
from accelerator.io.resolve import (
    REUSE_JITTER,
    REUSE_S,
    Address,
    Resolver,
    families_in_turn,
    is_own_address,
    parse_ip,
    refusal,
)

__all__ = ["run"]

GRACE_S = 24 * 3600.0
OWN = {ip_address("10.1.2.3"), ip_address("2001:db8::53"), ip_address("192.0.2.7")}


def is_own(ip: Any) -> bool:
    return ip in OWN


def v6_with_v4(prefix: str, v4: str, shift: int = 0) -> str:
    return str(ip_address(int(ip_address(prefix)) | int(ip_address(v4)) << shift))


FORBIDDEN_V4 = {
    "127.0.0.1": "loopback",
    "127.0.0.2": "loopback",
    "127.1.2.3": "loopback",
    "127.255.255.254": "loopback",
    "127.255.255.255": "loopback",
    "169.254.0.0": "link-local",
    "169.254.169.254": "link-local",
    "169.254.170.2": "link-local",
    "169.254.255.255": "link-local",
    "0.0.0.0": "unspecified",
    "0.0.0.1": "unspecified",
    "0.255.255.255": "unspecified",
    "224.0.0.1": "multicast",
    "232.1.1.1": "multicast",
    "239.255.255.255": "multicast",
    "255.255.255.255": "broadcast",
    "10.1.2.3": "own address",
    "192.0.2.7": "own address",
}
FORBIDDEN_V6 = {
    "::": "unspecified",
    "::1": "loopback",
    "0:0:0:0:0:0:0:1": "loopback",
    "fe80::": "link-local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "febf:ffff::1": "link-local",
    "ff02::1": "multicast",
    "ff0e::1": "multicast",
    "ffff::": "multicast",
    "2001:db8::53": "own address",
}
# Each way to carry an IPv4 address in an IPv6 one.
CARRIERS = {
    "mapped": lambda v4: "::ffff:" + v4,
    "mapped-hex": lambda v4: v6_with_v4("::ffff:0:0", v4),
    "compatible": lambda v4: v6_with_v4("::", v4),
    "translated": lambda v4: v6_with_v4("::ffff:0:0:0", v4),
    "nat64": lambda v4: v6_with_v4("64:ff9b::", v4),
    "nat64-local-96": lambda v4: v6_with_v4("64:ff9b:1::", v4),
    "nat64-local-64": lambda v4: v6_with_v4("64:ff9b:1::", v4, 24),
    "nat64-local-48": lambda v4: str(
        ip_address(
            int(ip_address("64:ff9b:1::"))
            | (int(ip_address(v4)) >> 16) << 64
            | (int(ip_address(v4)) & 0xFFFF) << 40
        )
    ),
    "6to4": lambda v4: v6_with_v4("2002::1", v4, 80),
    "teredo-server": lambda v4: v6_with_v4("2001::3fff:fdd2", v4, 64),
    "teredo-client": lambda v4: v6_with_v4("2001:0:808:808::", str(ip_address(~int(ip_address(v4)) & 0xFFFFFFFF))),
    "isatap": lambda v4: v6_with_v4("2001:db8::5efe:0:0", v4),
    "isatap-global": lambda v4: v6_with_v4("2001:db8::200:5efe:0:0", v4),
}
CARRIED = ("127.0.0.1", "127.1.2.3", "169.254.169.254", "10.1.2.3", "224.0.0.1", "0.0.0.0", "255.255.255.255")
FORBIDDEN = {
    **FORBIDDEN_V4,
    **FORBIDDEN_V6,
    **{
        make(v4): FORBIDDEN_V4[v4]
        for name, make in CARRIERS.items()
        for v4 in CARRIED
        if not (name.startswith("nat64-local") and v4 == "0.0.0.0")
    },
    # 64 zero bits and the address zero make :: itself, 0.0.0.1 makes ::1, whatever is read into them.
    "::0.0.0.1": "loopback",
}
ALLOWED = (
    "10.0.0.20", "10.1.2.4", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "8.8.8.8", "126.255.255.255",
    "128.0.0.1", "1.0.0.0", "169.253.255.255", "169.255.0.1", "223.255.255.255", "2001:db8::1", "fd00::1",
    "2606:4700::1", "fec0::1", "2002:808:808::1", "64:ff9b::808:808", "64:ff9b:1::808:808:0:0", "::ffff:8.8.8.8",
    "2000:5efe::1", "64:ff9b:1::808:808", "64:ff9b:1::",
)  # fmt: skip


def resolver(
    answers: dict[str, Any], counters: OriginCounters | None = None, note: Any = lambda event: None
) -> Resolver:
    async def getaddrinfo(host: str, port: Any, *, type: int) -> list[tuple[Any, ...]]:
        answer = answers[host]
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = ["10.0.0.9"]
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, type, 6, "", (ip, 0) if "." in ip else (ip, 0, 0, 0))
            for ip in answer
        ]

    return Resolver(asyncio.get_running_loop(), counters or OriginCounters(), getaddrinfo, is_own, note)


async def resolve(answers: Any, host: str = "media.example", port: int = 80, **more: Any) -> tuple[Address, ...]:
    settings: dict[str, Any] = {"pins": (), "own_listeners": frozenset(), "timeout_s": 5.0, "grace_s": GRACE_S, **more}
    resolving = resolver(answers if isinstance(answers, dict) else {host: answers})
    try:
        return await resolving.addresses(host, port, **settings)
    finally:
        await resolving.close()


async def refused(*arguments: Any, **more: Any) -> OriginError:
    with pytest.raises(OriginError) as caught:
        await resolve(*arguments, **more)
    return caught.value


def test_there_are_enough_forms() -> None:
    assert len(FORBIDDEN) >= 100


@pytest.mark.fault(25)
@pytest.mark.parametrize("ip", sorted(FORBIDDEN))
def test_a_name_must_not_lead_there(ip: str) -> None:
    parsed = parse_ip(ip)
    assert parsed is not None
    assert refusal(parsed, is_own) is not None
    assert refusal(parsed, is_own) == FORBIDDEN[ip] or ":" in ip
    error = asyncio.run(refused([ip]))
    assert (error.kind, error.status, error.can_retry) == ("forbidden-address", 502, False)
    # Wherever it stands in the answer, it refuses the name.
    good = [f"10.0.0.{i}" for i in range(20, 30)]
    assert asyncio.run(refused([*good, ip])).kind == error.kind


@pytest.mark.parametrize("ip", sorted(FORBIDDEN))
def test_a_pin_or_a_literal_may(ip: str) -> None:
    assert [address.ip for address in asyncio.run(resolve({}, pins=(ip,)))] == [str(parse_ip(ip))]
    assert [address.ip for address in asyncio.run(resolve({}, host=ip))] == [str(parse_ip(ip))]


@pytest.mark.parametrize("ip", ALLOWED)
def test_allowed(ip: str) -> None:
    assert asyncio.run(resolve([ip])) == (Address(str(ip_address(ip)), 80),)


# What inet_aton() and resolvers turn into 127.0.0.1; here they are names, and what they resolve to is checked.
ODD_NAMES = (
    "2130706433", "0x7f000001", "0x7f.1", "0x7f.0x0.0x0.0x1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "0",
    "0x0",
    "127.0.0.01", "127.000.000.001", "127.0.0.1.", "localhost", "localhost.", "LOCALHOST", "localhost.localdomain",
    "ip6-localhost", "127.0.0.1.nip.example", "\u0661\u0662\u0667.0.0.1", "\uff11\uff12\uff17.0.0.1", "①②⑦.⓪.⓪.①",
)  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_spellings_are_names_and_refused_by_what_they_resolve_to(name: str) -> None:
    assert parse_ip(name) is None
    assert asyncio.run(refused({name: ["127.0.0.1"]}, host=name)).kind == "forbidden-address"


@pytest.mark.parametrize("name", ["2130706433", "0x7f.1", "127.1", "0", "localhost"])
def test_the_systems_own_resolver_is_checked_too(run: Any, name: str) -> None:
    async def main() -> None:
        resolving = Resolver(asyncio.get_running_loop(), OriginCounters())
        with pytest.raises(OriginError) as caught:
            await resolving.addresses(name, 80, pins=(), own_listeners=frozenset(), timeout_s=5, grace_s=GRACE_S)
        assert caught.value.kind in ("forbidden-address", "dns")
        await resolving.close()

    run(main())


LISTENERS = frozenset({("0.0.0.0", 8080), ("10.1.2.3", 8443), ("::1", 8081), ("127.0.0.1", 8082), ("::", 8083)})
OURS = [
    ("127.0.0.1", 8080), ("127.0.0.9", 8080), ("10.1.2.3", 8080), ("0.0.0.0", 8080), ("::1", 8080), ("::", 8080),
    ("2001:db8::53", 8080), ("::ffff:127.0.0.1", 8080), ("::ffff:10.1.2.3", 8080), ("::ffff:0.0.0.0", 8080),
    ("10.1.2.3", 8443), ("::ffff:10.1.2.3", 8443), ("64:ff9b::10.1.2.3", 8443), ("2002:a01:203::1", 8443),
    ("::1", 8081), ("::", 8081), ("127.0.0.1", 8082), ("0.0.0.0", 8082), ("::ffff:127.0.0.1", 8082),
    ("127.0.0.1", 8083), ("2001:db8::53", 8083), ("10.1.2.3", 8083),
]  # fmt: skip
NOT_OURS = [
    ("127.0.0.1", 80), ("10.1.2.3", 8081), ("10.1.2.4", 8080), ("10.1.2.4", 8443), ("127.0.0.2", 8082),
    ("127.0.0.1", 8443),
    ("2001:db8::54", 8083), ("192.0.2.7", 8443),
]  # fmt: skip


@pytest.mark.parametrize(("ip", "port"), OURS)
def test_our_own_listeners_are_refused_always(ip: str, port: int) -> None:
    for more in ({"pins": (ip,)}, {"host": ip}, {"pins": ("10.0.0.20", ip)}):
        error = asyncio.run(refused({}, port=port, own_listeners=LISTENERS, **more))
        assert (error.kind, error.status) == ("forbidden-address", 502)


@pytest.mark.parametrize(("ip", "port"), NOT_OURS)
def test_other_ports_and_hosts_are_not_ours(ip: str, port: int) -> None:
    assert asyncio.run(resolve({}, port=port, own_listeners=LISTENERS, pins=(ip,))) == (Address(ip, port),)


def test_own_addresses_are_found_without_asking_anybody() -> None:
    assert is_own_address(ip_address("127.0.0.1"))
    assert is_own_address(ip_address("::1"))
    for other in ("192.0.2.1", "198.51.100.7", "8.8.8.8", "224.0.0.1", "255.255.255.255", "2001:db8::1"):
        assert not is_own_address(ip_address(other))


def test_a_pin_that_is_no_address() -> None:
    assert asyncio.run(refused({}, pins=("10.0.0.1", "0x7f.1"))).kind == "dns"


def test_addresses_are_unique_ordered_and_bounded() -> None:
    many = ["10.0.0.2", "10.0.0.1", "10.0.0.2", *(f"10.0.1.{i}" for i in range(200))]
    assert [a.ip for a in asyncio.run(resolve(many))] == ["10.0.0.2", "10.0.0.1", "10.0.1.0", "10.0.1.1"]


@pytest.mark.parametrize(
    ("ips", "order"),
    [
        ([], []),
        (["10.0.0.1", "10.0.0.2"], ["10.0.0.1", "10.0.0.2"]),
        (["fd00::1", "fd00::2", "10.0.0.1"], ["fd00::1", "10.0.0.1", "fd00::2"]),
        (["10.0.0.1", "fd00::1", "fd00::2", "10.0.0.2"], ["10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"]),
    ],
)
def test_families_come_in_turn(ips: list[str], order: list[str]) -> None:
    assert [str(ip) for ip in families_in_turn(map(ip_address, ips))] == order


def test_four_addresses_of_one_family_do_not_hide_the_other() -> None:
    many = [*(f"fd00::{i}" for i in range(1, 9)), "10.0.0.1"]
    assert [a.ip for a in asyncio.run(resolve(many))] == ["fd00::1", "10.0.0.1", "fd00::2", "fd00::3"]


def test_a_literal_is_its_own_address_whatever_is_pinned() -> None:
    assert asyncio.run(resolve({}, host="10.0.0.9", pins=("10.0.0.20",))) == (Address("10.0.0.9", 80),)


@pytest.mark.parametrize("answer", [[], socket.gaierror(-2, "unknown"), UnicodeError("label too long"), ["nonsense"]])
def test_failed_lookups(answer: Any) -> None:
    error = asyncio.run(refused({"media.example": answer}))
    assert (error.kind, error.status, error.can_retry) == ("dns", 502, True)


def test_one_lookup_for_all_who_ask_and_a_silent_resolver_times_out() -> None:
    async def main() -> None:
        counters = OriginCounters()
        gate = asyncio.Event()
        resolving = resolver({"media.example": gate}, counters)

        async def ask(timeout_s: float) -> Any:
            return await resolving.addresses(
                "media.example", 80, pins=(), own_listeners=frozenset(), timeout_s=timeout_s, grace_s=GRACE_S
            )

        with pytest.raises(OriginError) as caught:
            await ask(0.01)
        assert (caught.value.kind, caught.value.status) == ("dns", 504)
        waiting = [asyncio.ensure_future(ask(5)) for _ in range(50)]
        waiting[0].cancel()
        gate.set()
        answers = await asyncio.gather(*waiting[1:])
        assert set(answers) == {(Address("10.0.0.9", 80),)}
        assert counters.resolve_failures == 1
        await resolving.close()

    asyncio.run(main())


class Clock:
    """A loop's time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0


@pytest.mark.fault(25)
def test_the_last_good_answer_serves_for_a_day_and_a_lie_is_no_good_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        counters = OriginCounters()
        answers: dict[str, Any] = {"media.example": ["10.0.0.20"]}
        resolving = resolver(answers, counters)
        clock = Clock()
        monkeypatch.setattr(resolving._loop, "time", lambda: clock.now_s, raising=False)

        async def ask() -> Any:
            # No time-out of its own: the loop's clock stands still.
            return await resolving.addresses(
                "media.example", 80, pins=(), own_listeners=frozenset(), timeout_s=1e6, grace_s=GRACE_S
            )

        good = (Address("10.0.0.20", 80),)
        assert await ask() == good
        answers["media.example"] = ["10.0.0.21"]
        assert await ask() == good
        clock.now_s += REUSE_S
        assert await ask() == (Address("10.0.0.21", 80),)
        answers["media.example"] = ["127.0.0.1"]
        clock.now_s += REUSE_S
        with pytest.raises(OriginError) as caught:
            await ask()
        assert caught.value.kind == "forbidden-address"
        answers["media.example"] = socket.gaierror(-3, "try again")
        clock.now_s += REUSE_S
        assert await ask() == (Address("10.0.0.21", 80),)
        assert counters.resolved_by_last_good == 1
        clock.now_s += GRACE_S
        with pytest.raises(OriginError) as caught:
            await ask()
        assert caught.value.kind == "dns"
        monkeypatch.undo()
        assert loop.time() != clock.now_s
        await resolving.close()

    asyncio.run(main())


@pytest.mark.fault(25)
def test_dns_that_fails_and_returns_is_told_once_each_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        told: list[tuple[str, str]] = []
        counters = OriginCounters()
        answers: dict[str, Any] = {"media.example": ["10.0.0.20"]}
        resolving = resolver(answers, counters, lambda event: told.append((event.kind, event.subject)))
        clock = Clock()
        monkeypatch.setattr(resolving._loop, "time", lambda: clock.now_s, raising=False)
        good = (Address("10.0.0.20", 80),)

        async def ask() -> Any:
            return await resolving.addresses(
                "media.example", 80, pins=(), own_listeners=frozenset(), timeout_s=1e6, grace_s=60
            )

        assert await ask() == good
        assert told == []
        answers["media.example"] = socket.gaierror(-3, "try again")
        for _ in range(3):
            clock.now_s += REUSE_S
            assert await ask() == good
            assert told == [("dns-failed", "media.example")]
        # A resolver that hangs: its last answer serves at once, and all share one lookup.
        gate = asyncio.Event()
        answers["media.example"] = gate
        clock.now_s += REUSE_S
        for _ in range(5):
            assert await ask() == good
        assert counters.resolved_by_last_good == 8
        gate.set()
        while len(told) < 2:
            await asyncio.sleep(0)
        assert told[1:] == [("dns-returned", "media.example")]
        assert await ask() == (Address("10.0.0.9", 80),)
        # From its last success on, grace runs; a failure that is no longer bridged is the request's.
        answers["media.example"] = socket.gaierror(-2, "unknown")
        clock.now_s += REUSE_S
        assert await ask() == (Address("10.0.0.9", 80),)
        clock.now_s += 60
        with pytest.raises(OriginError, match="unknown"):
            await ask()
        assert [kind for kind, _ in told] == ["dns-failed", "dns-returned", "dns-failed"]
        monkeypatch.undo()
        await resolving.close()

    asyncio.run(main())


def test_names_looked_up_together_are_looked_up_again_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        names = [f"media{i}.example" for i in range(100)]
        resolving = resolver({name: ["10.0.0.20"] for name in names})
        clock = Clock()
        monkeypatch.setattr(resolving._loop, "time", lambda: clock.now_s, raising=False)
        for name in names:
            await resolving.addresses(name, 80, pins=(), own_listeners=frozenset(), timeout_s=1e6, grace_s=60)
        ages_s = sorted(name.reuse_until_s - clock.now_s for name in resolving._names.values())
        assert REUSE_S * (1 - REUSE_JITTER) <= ages_s[0] < ages_s[-1] <= REUSE_S
        assert ages_s[-1] - ages_s[0] > REUSE_S * REUSE_JITTER / 2
        monkeypatch.undo()
        await resolving.close()

    asyncio.run(main())
