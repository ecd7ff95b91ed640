"""The tables that accelctl prints, from the daemon's answers (control.box). No socket here; imported only when a
table is wanted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from accelerator.control.rates import Sample
from accelerator.control.text import (
    count_text,
    duration_text,
    event_line,
    printable,
    rate_text,
    ratio_text,
    size_text,
    time_text,
)

# Wide enough that a pipe's reader gets every URL whole, on one line: tables never take more than they need.
_PIPE_WIDTH = 16_384
# From so many columns on, `top` shows all of its own.
_WIDE = 110
# Of `top`: ten facts, the table's head and rules, the last line.
TOP_FIXED_LINES = 15
# Of `relay top`: the table's head and rules, the line for those that don't fit.
RELAY_FIXED_LINES = 5
# Of a reason in a table; events and --json have it whole.
_REASON_WIDTH = 100
# Of a breaker, in an operator's words.
_STATES = {"open": "not asked", "half-open": "on trial", "suspect": "last request failed", "ok": "ok"}


def make_console() -> Console:
    """A console on stdout. Colours only on a terminal and without NO_COLOR (rich looks); nothing is taken for
    markup.
    """
    is_terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        width=None if is_terminal else _PIPE_WIDTH,
        force_terminal=is_terminal,
        markup=False,
        emoji=False,
        highlight=False,
    )


def show(command: str, result: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Print the answer to a command of the daemon's."""
    if command == "status":
        page = status_page(result)
    elif command == "cache stats":
        page = cache_stats_page(result)
    elif command == "cache ls":
        page = cache_list_page(result, offset=arguments["offset"])
    elif command == "cache purge":
        n = result["purged"]
        page = Text(f"{count_text(n)} object{'' if n == 1 else 's'} purged")
    elif command == "cache erase":
        n = result["erased"]
        how = "its key is dropped" if result["sealed"] else "its bytes are overwritten"
        where = f"; {how} in {count_text(result['segments'])} segments" if result["segments"] else ""
        page = Text(f"{count_text(n)} object{'' if n == 1 else 's'} erased{where}")
    elif command == "policy diff":
        page = policy_diff_page(result)
    elif command in ("policy apply", "policy rollback"):
        page = policy_applied_page(result)
    elif command == "policy history":
        page = policy_history_page(result)
    elif command == "events":
        page = events_page(result)
    elif command == "routes":
        page = routes_page(result)
    elif command == "relay ls":
        page = relay_list_page(result)
    elif command == "relay playlist":
        page = Text(result["m3u"].rstrip("\n"))
    elif command == "relay show":
        page = relay_page(result)
    elif command in ("relay add-receiver", "relay remove-receiver"):
        n, what = (result["added"], "added") if "added" in result else (result["removed"], "removed")
        page = Text(f"{count_text(n)} receiver{'' if n == 1 else 's'} {what}, {count_text(result['receivers'])} in all")
    else:
        page = _pairs((name, str(value)) for name, value in result.items())
    make_console().print(page)


def status_page(status: Mapping[str, Any]) -> RenderableType:
    health, policy = status["health"], status["policy"]
    facts = _pairs(
        [
            ("site", status["site"]),
            ("version", status["version"]),
            ("up", duration_text(status["uptime_s"])),
            ("policy", f"generation {policy['generation']}, {policy['path']} ({policy['digest'][:12]})"),
            ("admin", status["admin"] or "-"),
            ("tunnels", count_text(status.get("tunnels", 0))),
        ]
    )
    verdict = Text("healthy", style="green") if health["ok"] else Text("not healthy", style="bold red")
    for reason in health["reasons"]:
        verdict.append(f"\n  {printable(reason)}")
    for warning in status.get("warnings", ()):
        verdict.append(f"\n  warning: {printable(warning)}", style="bold yellow")
    listeners = _table("listener", "address", "state")
    for listener in status["listeners"]:
        state = Text("accepting", style="green") if listener["accepting"] else Text("not accepting", style="bold red")
        listeners.add_row(printable(listener["name"]), printable(listener["address"]), state)
    workers = _table("worker", "connections", "state", right=("worker", "connections"))
    for worker in status["workers"]:
        state = Text("alive", style="green") if worker["alive"] else Text("dead", style="bold red")
        workers.add_row(str(worker["index"]), count_text(worker["connections"]), state)
    certificates = _certificates(status.get("certificates", ()))
    links = [*_links(status.get("links", ())), *_queues(status.get("queues", ()))]
    return Group(verdict, facts, listeners, *certificates, workers, *links, *_upstreams(status.get("upstreams", ())))


def _links(rows: Any) -> list[RenderableType]:
    """WAN links, and of each class what it fetches against the link's budget."""
    table = _table("link", "state", "budget", "class", "now", "bytes", "transfers", "waiting",
                   right=("budget", "now", "bytes", "transfers", "waiting"))  # fmt: skip
    for row in rows:
        state = Text("up", style="green") if row["up"] else Text(printable(row["why"]) or "down", style="bold red")
        budget = f"{row['video_bps'] / 1e6:.6g} Mbit/s" if row["video_bps"] else "none"
        first = (printable(f"{row['name']} ({row['interface']})"), state, budget)
        busy = [each for each in row["classes"] if each["bytes"] or each["transfers"]]
        for each in busy:
            figures = (each["bytes"], each["transfers"], each["waiting"])
            rate = f"{each['bps'] / 1e6:.1f} Mbit/s"
            table.add_row(*first, printable(each["name"]), rate, *(count_text(figure) for figure in figures))
            first = ("", Text(""), "")
        outside = row.get("outside", {})
        if n := outside.get("tunnels", 0) + outside.get("relays", 0):
            rate = f"{outside['bps'] / 1e6:.1f} Mbit/s"
            table.add_row(*first, "tunnels, relays", rate, count_text(n), "", "")
        elif not busy:
            table.add_row(*first, "", "", "", "", "")
    return [table] if rows else []


def _queues(rows: Any) -> list[RenderableType]:
    """What the kernel shapes: each class's sure rate, its most, and what went through it."""
    right = ("for sure", "at most", "bytes", "packets", "dropped", "waiting")
    table = _table("queues", "class", *right, right=right)
    for row in rows:
        first = f"{row['interface']}, {'in' if row['side'] == 'ingress' else 'out'}"
        for each in row["classes"]:
            rates = (f"{each[key] / 1e6:.1f} Mbit/s" for key in ("rate_bps", "ceiling_bps"))
            counts = (each.get(key, 0) for key in ("bytes", "packets", "drops", "backlog_bytes"))
            figures = map(count_text, counts) if each["is_there"] else ("not there", "", "", "")
            table.add_row(printable(first), printable(each["name"]), *rates, *figures)
            first = ""
    return [table] if rows else []


def _certificates(rows: Any) -> list[RenderableType]:
    table = _table("certificate", "for", "ends in", "state", right=("ends in",))
    for row in rows:
        state = Text(row["state"], style="green" if row["state"] == "ok" else "bold red")
        days = f"{count_text(max(0, int(row['days_left'])))} days"
        table.add_row(printable(row["name"]), printable(", ".join(row["hosts"])), days, state)
    return [table] if rows else []


def what_waits(shown: Mapping[str, Any]) -> list[str]:
    """What netd can't do now, of its answer: the kernel refuses it, or an interface is missing."""
    refused = shown.get("refused", {})
    lines = [f"{family}: multicast is not routed: {why}" for family, why in refused.items()]
    for family, proxies in shown["multicast"].items():
        for name, proxy in proxies.items():
            lines += [f"{name}, {family}: waits for interface {each}" for each in proxy["missing"]]
    return lines + [f"waits for interface {each}" for each in shown.get("kernel", {}).get("waiting_for", ())]


def routes_page(shown: Mapping[str, Any]) -> RenderableType:
    """Each proxy's routes, those that the kernel doesn't have marked, and what is asked for upstream; then unicast
    routes, rules and packet rules, and what is left to do. Only with steps: a dry run's."""
    if "multicast" not in shown:
        waits = [f"can't be done now: {each}" for each in shown["waits"]]
        left = "\n".join(printable(each) for each in (*shown["steps"], *waits))
        return Text(left or "nothing is left to do: the kernel has what is wanted")
    table = _table("proxy", "source", "group", "from", "to", "packets", "kernel")
    notes = what_waits(shown)
    for family, proxies in shown["multicast"].items():
        for name, proxy in proxies.items():
            for route in proxy["routes"]:
                state = Text("there", style="green") if route["is_installed"] else Text("missing", style="bold red")
                row = (name, route["source"], route["group"], route["from"], ", ".join(route["to"]) or "nowhere")
                table.add_row(*(printable(each) for each in row), count_text(route["packets"]), state)
            for interface, link in proxy["downstreams"].items():
                if link["drops"]:
                    why = ", ".join(f"{reason} {count_text(n)}" for reason, n in link["drops"].items())
                    notes.append(f"{name}, {family}: dropped on {interface}: {why}")
                if not link["is_querier"] and link["querier"] is not None:
                    notes.append(f"{name}: {link['querier']} asks on {interface}, so we don't forward there")
    kernel = shown.get("kernel", {})
    pages: list[RenderableType] = [table] if shown["multicast"] else []
    wanted = kernel.get("wanted", {})
    if any(wanted.values()) or kernel.get("n_steps"):
        pages.append(_kernel_table(kernel))
        pages += _queues(kernel.get("queues", ()))
        notes += [f"{each}: has another program's queues: ours stay out" for each in kernel.get("taken_interfaces", ())]
        notes += [f"table {each}: has another program's routes: ours stay out" for each in kernel["taken_tables"]]
        notes += [f"{each}: another program undoes it, so it is left alone for a while" for each in kernel["stopped"]]
        notes += [f"the kernel refuses: {kernel['problem']}"] if kernel["problem"] else []
        notes += [f"to do: {each}" for each in kernel["steps"][:20]]
    if not pages and not notes:
        return Text("nothing is wanted of the kernel")
    return Group(*pages, *(Text(printable(note), style="yellow") for note in notes))


def _kernel_table(kernel: Mapping[str, Any]) -> RenderableType:
    """Ours in the kernel, as `ip` writes it."""
    table = _table("kind", "wanted", "there now")
    rows = (("routes", "routes", kernel["routes"]), ("rules", "rules", kernel["rules"]))
    for label, key, there in rows:
        count = count_text(kernel["wanted"][key])
        for line in there[:50] or [""]:
            table.add_row(label, count, printable(line))
            label = count = ""
    counted = [line.strip() for line in kernel["nft"] if "counter" in line]
    label, count = "nft", count_text(kernel["wanted"]["packet_rules"])
    for line in counted[:50]:
        table.add_row(label, count, printable(line))
        label = count = ""
    return table


_RELAY_STATES = {"live": "green", "silent": "bold red", "waiting": "yellow", "idle": ""}


def relay_list_page(listing: Mapping[str, Any], *, rows_max: int = 10_000) -> RenderableType:
    """Those without signal first; what a relay waits for stands below."""
    order = ("silent", "waiting", "live", "idle")
    relays = sorted(listing["relays"], key=lambda each: order.index(each["state"]))
    if not relays:
        return Text("no relays")
    numbers = ("in", "packets/s", "lost", "repaired", "late", "jitter ms", "breaks", "dropped", "receivers", "out")
    table = _table("relay", "state", "format", *numbers, right=numbers)
    notes = []
    for row in relays[:rows_max]:
        table.add_row(
            printable(row["name"]),
            Text(row["state"], style=_RELAY_STATES.get(row["state"], "")),
            printable(row["format"]),
            rate_text(row["bitrate_bps"]),
            count_text(row["packets_per_s"]),
            count_text(row["lost"]),
            count_text(row["repaired"] + row["merged"]),
            count_text(row["late"]),
            f"{row['jitter_ms']:.1f}",
            count_text(row["discontinuities"]),
            count_text(row["dropped"] + row["send_dropped"]),
            count_text(row["receivers"]),
            rate_text(row["sent_bps"]),
        )
        notes += [f"{row['name']}: {trouble}" for trouble in row["troubles"][:2]]
    if len(relays) > rows_max:
        notes.append(f"and {len(relays) - rows_max} more")
    return Group(table, *(Text(printable(note), style="yellow") for note in notes[:10]))


def relay_page(row: Mapping[str, Any]) -> RenderableType:
    facts = _pairs(
        [
            ("relay", f"{row['name']}: {row['state']}, {row['format']}"),
            ("inputs", f"{row['mode']}, join {row['join']}"),
            ("in", f"{rate_text(row['bitrate_bps'])}, {count_text(row['packets_per_s'])} packets/s"),
            ("out", f"{rate_text(row['sent_bps'])}, {count_text(row['sent_packets_per_s'])} packets/s"),
            ("receivers", f"{count_text(row['receivers'])}, {count_text(row['subscribed'])} of them added, "
                          f"{count_text(row['viewers'])} over HTTP"),
        ]
    )
    numbers: tuple[str, ...] = ("packets", "first", "lost", "jitter ms", "silent", "kernel drops")
    legs = _table("input", "interface", "use", *numbers, right=numbers)
    for leg in row["legs"]:
        use = leg["kind"] if leg["kind"] != "media" else "active" if leg["active"] else "standby"
        if leg["joined"] is False:
            use += ", not joined"
        if leg["apart"]:
            use += ", apart"
        legs.add_row(
            printable(leg["input"]), printable(leg["interface"] or "-"), use, count_text(leg["datagrams"]),
            count_text(leg["first"]), count_text(leg["lost"]), f"{leg['jitter_ms']:.1f}",
            "-" if leg["silent_s"] is None else duration_text(leg["silent_s"]), count_text(leg["drop_kernel"]),
        )  # fmt: skip
    drops = ("drop_full", "drop_refused", "drop_size", "drop_backlog")
    numbers = ("receivers", "packets", "trains", *(name.removeprefix("drop_") for name in drops))
    outputs = _table("output", "interface", "rtp", *numbers, right=numbers)
    numbers = ("viewers", "bytes", "skips", "no MPEG-TS", "stalled")
    paths = _table("path", "zones", *numbers, right=numbers)
    for each in row["to"]:
        if each["kind"] == "http":
            paths.add_row(
                printable(each["to"]), printable(", ".join(each["zones"]) or "all"),
                *(count_text(each[name]) for name in ("receivers", "bytes", "skips", "drop_format", "drop_stalled")),
            )  # fmt: skip
            continue
        outputs.add_row(
            printable(each["to"]), printable(each["interface"] or "-"), each["rtp"], count_text(each["receivers"]),
            count_text(each["packets"]), count_text(each["trains"]), *(count_text(each[name]) for name in drops),
        )  # fmt: skip
    counters = _pairs(
        ((name.replace("_", " "), count_text(value)) for name, value in row["counters"].items() if value), is_right=True
    )
    notes = [Text(printable(trouble), style="yellow") for trouble in row["troubles"]]
    tables = [table for table in (outputs, paths) if table.row_count]
    return Group(facts, *notes, legs, *tables, counters)


def _upstreams_text(n: int, n_out: int) -> Text:
    if not n_out:
        return Text("ok" if n else "-", style="green")
    return Text(f"{n_out} of {n} not asked", style="bold red" if n_out == n else "yellow")


def _upstreams(rows: Any) -> list[RenderableType]:
    """A line for all that do well, a row for each that doesn't."""
    troubled = [row for row in rows if row["state"] != "ok"]
    parts: list[RenderableType] = [Text(f"upstreams: {count_text(len(rows) - len(troubled))} ok")] if rows else []
    if troubled:
        table = _table("origin", "upstream", "state", "failures", "next trial", "why", right=("failures", "next trial"))
        for row in troubled:
            is_out = row["state"] in ("open", "half-open")
            table.add_row(
                printable(row["origin"]),
                printable(row["upstream"]),
                Text(_STATES.get(row["state"], printable(row["state"])), style="bold red" if is_out else "yellow"),
                f"{row['failures']} of 20",
                duration_text(row["trial_in_s"]) if row["state"] == "open" else "-",
                _shortened(printable(row["error"])),
            )
        parts.append(table)
    return parts


def policy_diff_page(found: Mapping[str, Any]) -> RenderableType:
    """What changes, a line a key, and then what that means."""
    lines = []
    for change in found["changes"]:
        key, old, new = printable(change["key"]), _value(change["old"]), _value(change["new"])
        match change["kind"]:
            case "added":
                lines.append(Text(f"+ {key}: {new}", style="green"))
            case "removed":
                lines.append(Text(f"- {key}: {old}", style="red"))
            case _:
                lines.append(Text(f"~ {key}: {old} -> {new}", style="yellow"))
    if not lines:
        return Text("nothing changes")
    effects = [Text(f"  {printable(effect['text'])}") for effect in found["effects"]]
    return Group(*lines, *([Text("for viewers:", style="bold"), *effects] if effects else []))


def policy_applied_page(result: Mapping[str, Any]) -> RenderableType:
    verdict = f"policy {result['number']} runs, generation {result['generation']} ({result['digest'][:12]})"
    if "restored" in result:
        verdict += f": policy {result['restored']} again"
        if not result["was_good"]:
            verdict += ", which had not yet proved good"
    return Group(policy_diff_page(result), Text(verdict))


def policy_history_page(history: Mapping[str, Any]) -> RenderableType:
    if not history["entries"]:
        return Text("no policies")
    table = _table("policy", "when", "how", "became", "digest", "from", "why", right=("policy",))
    table.columns[6].no_wrap = False
    for entry in history["entries"]:
        how = entry["by"] if entry["restores"] is None else f"{entry['by']} of {entry['restores']}"
        table.add_row(
            f"{entry['number']}{'*' if entry['running'] else ''}",
            time_text(entry["at_s"]),
            how,
            entry["outcome"] if entry["n"] == 1 else f"{entry['outcome']} {entry['n']} times",
            entry["digest"][:12],
            printable(entry["path"]),
            _shortened(printable(entry["reason"])),
        )
    return Group(table, Text("* runs now"))


def events_page(found: Mapping[str, Any]) -> RenderableType:
    return Group(*(Text(event_line(event)) for event in found["events"])) if found["events"] else Text("no events")


def _shortened(text: str) -> str:
    return text if len(text) <= _REASON_WIDTH else text[: _REASON_WIDTH - 3] + "..."


def _value(value: Any) -> str:
    if isinstance(value, str):
        return printable(value)
    return printable(json.dumps(value, ensure_ascii=False))


def cache_stats_page(stats: Mapping[str, Any]) -> RenderableType:
    rows: list[tuple[str, str]] = []
    for name, value in stats.items():
        if not isinstance(value, int | float):
            continue
        is_bytes = name.startswith("bytes_") or name.endswith("_bytes")
        rows.append((name.replace("_", " "), size_text(value) if is_bytes else count_text(value)))
        if name == "hits":
            rows.append(("hit ratio", ratio_text(value / stats["requests"] if stats.get("requests") else None)))
    return _pairs(rows, is_right=True)


def cache_list_page(listing: Mapping[str, Any], *, offset: int) -> RenderableType:
    objects = listing["objects"]
    table = _table("url", "origin", "status", "size", "age", "ttl", "state", right=("status", "size", "age", "ttl"))
    table.columns[0].overflow = "fold"
    for each in objects:
        table.add_row(
            printable(each["url"]),
            printable(each["origin"]),
            str(each["status"]),
            size_text(each["size_bytes"]),
            duration_text(each["age_s"]),
            duration_text(each["ttl_s"]),
            printable(each["state"]),
        )
    if not objects:
        return Text(f"none of {count_text(listing['total'])} objects" if listing["total"] else "no objects")
    last = offset + len(objects)
    footer = f"{count_text(offset + 1)} to {count_text(last)} of {count_text(listing['total'])}"
    if last < listing["total"]:
        footer += f"; more: --offset {last}"
    return Group(table, Text(footer))


def top_page(sample: Sample, *, width: int = _PIPE_WIDTH) -> RenderableType:
    """In the order of the sample. A terminal of less than 100 columns gets those that tell most."""
    limit = sample["memory_limit_bytes"]
    share = f" ({ratio_text(sample['memory_bytes'] / limit)} of {size_text(limit)})" if limit else ""
    facts = _pairs(
        [
            ("requests/s", count_text(sample["requests_per_s"])),
            ("hit ratio", ratio_text(sample["hit_ratio"])),
            ("misses/s", count_text(sample["misses_per_s"])),
            ("collapsed/s", count_text(sample["collapsed_per_s"])),
            ("refused/s", count_text(sample["refused_per_s"])),
            ("to viewers", rate_text(sample["to_viewers_bps"])),
            ("from origins", rate_text(sample["from_origin_bps"])),
            ("connections", count_text(sample["connections"])),
            ("objects", count_text(sample["objects"])),
            ("memory", size_text(sample["memory_bytes"]) + share),
        ]
    )
    columns: tuple[str, ...] = (
        "origin", "requests/s", "hit ratio", "to viewers", "from origin", "errors/s", "connections", "tunnels",
        "upstreams",
    )  # fmt: skip
    if width < _WIDE:
        columns = columns[:6]
    table = _table(*columns, right=tuple(name for name in columns if name not in ("origin", "upstreams")))
    for origin in sample["origins"]:
        cells: list[str | Text] = [
            printable(origin["name"]),
            count_text(origin["requests_per_s"]),
            ratio_text(origin["hit_ratio"]),
            rate_text(origin["to_viewers_bps"]),
            rate_text(origin["from_origin_bps"]),
            count_text(origin["errors_per_s"]),
            count_text(origin["connections"]),
            count_text(origin["tunnels"]),
            _upstreams_text(origin["upstreams"], origin["upstreams_out"]),
        ]
        table.add_row(*cells[: len(columns)])
    n_left_out = sample["n_origins"] - len(sample["origins"])
    parts: list[RenderableType] = [facts, table]
    if n_left_out:
        parts.append(Text(f"and {count_text(n_left_out)} more origins: --sort, --contains, --limit choose"))
    return Group(*parts)


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column != "url")
    return table


def _pairs(rows: Any, *, is_right: bool = False) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right" if is_right else "left", overflow="fold")
    for name, value in rows:
        table.add_row(printable(name), printable(value))
    return table
