"""From a policy to the data plane's rows."""

from __future__ import annotations

import dataclasses
import pickle

from accelerator.policy import Tables, check_texts, compile_policy
from accelerator.policy.compile import ANY_METHODS, HostRow, Limits, ListenerRow, Logs, NetRow, PathRow
from accelerator.policy.multicast_rows import MulticastRows, ProxyRow, RouteRow

POLICY = """\
version: 1
site: {name: lyon}
zones:
  desks: {nets: [10.12.0.0/22, 2001:db8::/32]}
  wifi: {nets: [10.12.0.0/24, 10.12.0.0/22, 10.12.1.7]}
classes: {webcast: {}}
cache: {memory: 64MiB}
listen:
  lan: {address: "127.0.0.1:0"}
  wifi: {address: "[::1]:8080", zones: [wifi, wifi]}
  both: {address: "127.0.0.1:8081", zones: [wifi, desks]}
admin: {address: "127.0.0.1:9000"}
workers: 2
origins:
  media: {from: ["https://m"], hosts: [Media.corp.example, "*.corp.example"], paths: [/, /live/], class: webcast}
  portal: {from: ["http://p"], hosts: ["*"], profile: generic}
  deep: {from: ["http://d"], hosts: ["*.a.corp.example", "media.corp.example"], paths: [/live/deep, /x]}
limits: {send_rate: 9bit/s, head_timeout: 250ms}
"""


def compiled(text: str) -> Tables:
    policy, problems = check_texts([("p", text.encode())])
    assert policy is not None, problems
    return compile_policy(policy)


def test_rows() -> None:
    tables = compiled(POLICY)
    assert tables.site == "lyon"
    media = ("GET", "HEAD", "OPTIONS")
    assert [(row.name, row.profile, row.class_name, row.methods, row.any_method) for row in tables.origins] == [
        ("media", 0, "webcast", media, False),
        ("portal", 1, None, ANY_METHODS, True),
        ("deep", 0, None, media, False),
    ]
    assert {row.body_max_bytes for row in tables.origins} == {None}
    assert [row.wait_s > 2 * 30 for row in tables.origins] == [True, True, True]
    assert [row.may_tunnel for row in tables.origins] == [False, True, False]
    wide = (PathRow("/live", 0), PathRow("/", 0))
    assert tables.hosts == (
        HostRow(
            "media.corp.example", 0, (PathRow("/live/deep", 2), PathRow("/live", 0), PathRow("/x", 2), PathRow("/", 0))
        ),
        HostRow(
            ".a.corp.example", 1, (PathRow("/live/deep", 2), PathRow("/live", 0), PathRow("/x", 2), PathRow("/", 0))
        ),
        HostRow(".corp.example", 1, wide),
        HostRow("*", 2, (PathRow("/", 1),)),
    )
    assert tables.zones == ("desks", "wifi")
    assert tables.listeners == (
        ListenerRow("lan", "127.0.0.1", 0, 0),
        ListenerRow("wifi", "::1", 8080, 0b10),
        ListenerRow("both", "127.0.0.1", 8081, 0b11),
    )
    mapped = bytes(10) + b"\xff\xff"
    assert tables.nets == (
        NetRow(mapped + bytes([10, 12, 1, 7]), 128, 1),
        NetRow(mapped + bytes([10, 12, 0, 0]), 120, 1),
        NetRow(mapped + bytes([10, 12, 0, 0]), 118, 0),
        NetRow(bytes.fromhex("20010db8") + bytes(12), 32, 0),
    )
    assert tables.limits == Limits(65536, 20000, 0.25, 30.0, 75.0, 2, 30.0)
    assert (tables.memory_bytes, tables.workers, tables.admin) == (64 * 2**20, 2, ("127.0.0.1", 9000))


def test_a_more_specific_host_without_the_path_leaves_it_to_the_next() -> None:
    """The first row that matches decides, so paths of wider hosts are in it."""
    tables = compiled(
        "version: 1\nsite: {name: a}\norigins:\n"
        "  one: {from: ['http://x'], hosts: [h.b.c], paths: [/one]}\n"
        "  two: {from: ['http://x'], hosts: ['*.b.c'], paths: [/two]}\n"
        "  any: {from: ['http://x'], hosts: ['*'], paths: [/one, /two, /any]}\n"
    )
    assert tables.hosts[0] == HostRow("h.b.c", 0, (PathRow("/any", 2), PathRow("/one", 0), PathRow("/two", 1)))
    assert tables.hosts[1] == HostRow(".b.c", 1, (PathRow("/any", 2), PathRow("/one", 2), PathRow("/two", 1)))


def test_the_smallest_policy() -> None:
    tables = compiled("{version: 1, site: {name: a}}")
    assert tables == Tables(
        "a", (), (), (), (), (), Limits(65536, 20000, 10.0, 30.0, 75.0, 1000, 30.0), 512 * 2**20, 0, tables.digest,
        Logs(False, 0, 7 * 86400.0, 256 * 2**20, 183 * 86400.0, 64 * 2**20), None, True, MulticastRows(),
    )


def test_multicast_routes() -> None:
    text = "{version: 1, site: {name: a}, zones: {wifi: {nets: [10.12.0.0/23], multicast: never}, desks: {nets: "
    text += "[10.12.1.0/24]}}, multicast: {table: 8600, routes: {menu: {group: 239.9.0.1, from: eth0, "
    text += "to: [lan0, lan1]}, clip: {group: '[ff3e::8000:1]', source: '2001:db8::7', from: eth0, to: [lan0]}}}}"
    tables = compiled(text)
    assert tables.multicast == MulticastRows(
        (),
        (
            RouteRow("menu", None, "239.9.0.1", "eth0", ("lan0", "lan1")),
            RouteRow("clip", "2001:db8::7", "ff3e::8000:1", "eth0", ("lan0",)),
        ),
        ("10.12.0.0/24",),
        8600,
    )


def test_multicast_proxies() -> None:
    text = "{version: 1, site: {name: a}, multicast: {querier: {interval: 1m}, proxies: {tv: {upstream: eth0, "
    tables = compiled(text + "downstream: [lan0, lan1], groups: [239.0.0.0/8, 'ff15::/16'], fast_leave: true}}}}")
    groups = ("239.0.0.0/8", "ff15::/16")
    assert tables.multicast.proxies == (
        ProxyRow("tv", "eth0", ("lan0", "lan1"), groups, (), 4096, 1024, True, "if-none", 60.0, 2, 1.0, 900.0),
    )


def test_quotas_are_of_where_a_class_is_kept() -> None:
    head = "version: 1\nsite: {name: a}\nclasses: {m: {store: memory, quota: 50%}, d: {quota: 40%, pin: true}, e: {}}\n"
    only_memory = compiled(head.replace(", pin: true", "") + "cache: {memory: 100MiB}\n")
    assert (only_memory.disk, only_memory.memory_quotas) == (None, (50 << 20, 40 << 20, 0))
    both = compiled(head + "cache: {memory: 100MiB, disk: {size: 1000MiB}}\n")
    assert both.disk is not None
    assert [(row.name, row.quota_bytes, row.is_pinned) for row in both.disk.classes] == [
        ("d", 400 << 20, True), ("e", 0, False),
    ]  # fmt: skip
    assert both.memory_quotas == (50 << 20, 0, 0)


def test_the_digest_is_of_what_the_policy_says() -> None:
    digest = compiled(POLICY).digest
    assert len(digest) == 64
    assert compiled("# a comment\n" + POLICY + "locked: [site]\n").digest == digest
    assert compiled(POLICY.replace("64MiB", "65536KiB").replace("9bit/s", "0.009kbit/s")).digest == digest
    written_out = "classes: {webcast: {store: disk, quota: 100%}}"
    assert compiled(POLICY.replace("classes: {webcast: {}}", written_out)).digest == digest
    lines = POLICY.splitlines(keepends=True)
    assert compiled("".join(lines[:2] + lines[13:] + lines[2:13])).digest == digest
    assert compiled(POLICY.replace("workers: 2", "workers: 3")).digest != digest
    two = "version: 1\nsite: {{name: a}}\nclasses: {{{}: {{}}, {}: {{}}}}\n"
    assert compiled(two.format("a", "b")).digest != compiled(two.format("b", "a")).digest, "order is priority"


def test_the_digest_is_the_same_on_every_machine() -> None:
    text = b"version: 1\nsite: {name: a}\norigins: {m: {from: ['https://x'], hosts: [h], ca: c.pem}}\n"
    digests = set()
    for folder in ("", "/etc/accelerator"):
        policy, _ = check_texts([("p", text)], folder)
        assert policy is not None
        digests.add(compile_policy(policy).digest)
    assert len(digests) == 1


def test_tables_and_policy_travel_between_processes() -> None:
    policy, _ = check_texts([("p", POLICY.encode())])
    assert policy is not None
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert pickle.loads(pickle.dumps(compile_policy(policy))) == compile_policy(policy)


def test_tables_are_plain_and_frozen() -> None:
    def plain(value: object) -> bool:
        if dataclasses.is_dataclass(value):
            assert type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
            return all(plain(getattr(value, field.name)) for field in dataclasses.fields(value))
        return (
            all(plain(item) for item in value)
            if isinstance(value, tuple)
            else type(value) in (str, int, float, bool, bytes, type(None))
        )

    assert plain(compiled(POLICY))


def test_a_dump_is_a_policy_again() -> None:
    policy, _ = check_texts([("p", POLICY.encode())])
    assert policy is not None
    assert type(policy).model_validate(policy.model_dump(mode="json", by_alias=True)) == policy
