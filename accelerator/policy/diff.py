"""What differs in meaning between two checked policies, and what that means for viewers. Pure; no text is compared.

Comments, format, units (`1024MiB`, `1GiB`), defaults written out, and order where it means nothing make no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel

from accelerator.policy.credentials import places_of
from accelerator.policy.model import Origin, Policy
from accelerator.policy.shape import keys_of

# Lists whose order means nothing, by section and key: an item more or less is a change, another order is none.
# Ordered are `from` (fail-over) and `resolve` (addresses are tried in turn).
_SETS = {("Zone", "nets"), ("Listener", "zones"), ("Origin", "hosts"), ("Origin", "paths"), ("Origin", "forward"),
         ("Origin", "methods"), ("MulticastProxy", "downstream"), ("MulticastProxy", "groups"),
         ("MulticastProxy", "sources"), ("Relay", "sources"), ("Mark", "nets"), ("Mark", "ports"),
         ("Policy", "locked")}  # fmt: skip
# Collections whose order means something: the first zone and link win, classes are priorities.
_ORDERED = ("zones", "links", "classes")
# What decides which connection reaches an origin: like io.origin.OriginSettings.reaches_same (a test holds them equal).
WAY_KEYS = ("from", "resolve", "via", "via_credential", "ca", "client_certificate")
# What a relay's input is made of: with another value it begins anew.
RELAY_INPUT_KEYS = (
    "from", "interface", "interfaces", "mode", "failover", "reorder", "sources", "payload_type", "fec", "bitrate",
    "connection", "retransmit",
)  # fmt: skip
# What a process is built with once: a running daemon refuses another value.
RESTART_KEYS = ("workers", "cache.memory", "cache.disk", "admin")


@dataclass(frozen=True, slots=True)
class Change:
    """One key, dotted. `old` and `new` are as a policy writes them; None: not there. Items of sets are told one by one;
    `reordered` has the names in the old and new order."""

    key: str
    kind: Literal["added", "removed", "changed", "reordered"]
    old: Any = None
    new: Any = None


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change does to those who watch. `kind`: listener, origin, route, credential, limit, restart, zone, cache,
    relay, multicast, steering, privacy, link."""

    kind: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Diff:
    changes: tuple[Change, ...]
    effects: tuple[Effect, ...]

    def __bool__(self) -> bool:
        return bool(self.changes)

    @property
    def needs_restart(self) -> bool:
        """Whether a running daemon refuses the new policy and has to be started anew for it."""
        return any(_is_below(change.key, key) for change in self.changes for key in RESTART_KEYS)

    @property
    def origins(self) -> frozenset[str]:
        """Names of origins that are there now and were not, or otherwise."""
        keys = (change.key.split(".") for change in self.changes)
        return frozenset(key[1] for key in keys if key[0] == "origins" and len(key) > 1)

    @property
    def has_limits(self) -> bool:
        return any(change.key.startswith("limits.") for change in self.changes)

    def as_dict(self) -> dict[str, Any]:
        return {"changes": [asdict(each) for each in self.changes], "effects": [asdict(each) for each in self.effects]}


def diff_policies(old: Policy, new: Policy) -> Diff:
    """The difference from `old` to `new`, in the order of the policy's keys. Raises nothing."""
    before = old.model_dump(mode="json", by_alias=True)
    after = new.model_dump(mode="json", by_alias=True)
    changes = tuple(_section(Policy, before, after, ""))
    return Diff(changes, tuple(_effects(old, new, changes)))


def _section(section: type[BaseModel], old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[Change]:
    for name, key in keys_of(section).items():
        before, after = old[name], new[name]
        if before == after and list(before if key.is_named else ()) == list(after if key.is_named else ()):
            continue
        dotted = prefix + name
        if key.section is not None and key.is_named:
            yield from _names(key.section, before, after, dotted, is_ordered=name in _ORDERED)
        elif key.section is not None and not key.is_listed and before is not None and after is not None:
            yield from _section(key.section, before, after, f"{dotted}.")
        elif (section.__name__, name) in _SETS:
            yield from (Change(dotted, "removed", old=item) for item in before if item not in after)
            yield from (Change(dotted, "added", new=item) for item in after if item not in before)
        elif before is None or after is None:
            yield Change(dotted, "added" if before is None else "removed", before, after)
        else:
            yield Change(dotted, "changed", before, after)


def _names(
    section: type[BaseModel], old: Mapping[str, Any], new: Mapping[str, Any], prefix: str, *, is_ordered: bool
) -> Iterator[Change]:
    for name in old:
        if name not in new:
            yield Change(f"{prefix}.{name}", "removed", old=_without_defaults(section, old[name]))
        else:
            yield from _section(section, old[name], new[name], f"{prefix}.{name}.")
    for name in new:
        if name not in old:
            yield Change(f"{prefix}.{name}", "added", new=_without_defaults(section, new[name]))
    kept_before = [name for name in old if name in new]
    kept_after = [name for name in new if name in old]
    if is_ordered and kept_before != kept_after:
        yield Change(prefix, "reordered", list(old), list(new))


def _without_defaults(section: type[BaseModel], dumped: Mapping[str, Any]) -> dict[str, Any]:
    defaults = section.model_construct().model_dump(mode="json", by_alias=True, warnings=False)
    return {name: value for name, value in dumped.items() if name not in defaults or value != defaults[name]}


def _effects(old: Policy, new: Policy, changes: Sequence[Change]) -> Iterator[Effect]:
    keys = {change.key for change in changes}
    yield from _restart_effects(keys)
    yield from _listener_effects(old, new, keys)
    for name in old.origins:
        if name not in new.origins:
            yield Effect(
                "origin", name, f"origin '{name}' is gone: its hosts are answered by another origin or by 421, "
                "and what is stored of it is not found any more",
            )  # fmt: skip
        elif any(key.startswith(f"origins.{name}.") for key in keys):
            yield from _origin_effects(name, old.origins[name], new.origins[name])
    for name in new.origins:
        if name not in old.origins:
            yield Effect("origin", name, f"origin '{name}' is new: it begins with nothing stored")
    yield from _link_effects(old, new, keys)
    for name in new.classes:
        if f"classes.{name}.max_offline" in keys:
            yield Effect("cache", name, f"class '{name}': another time for which content is used unchecked, at once")
    if any(key.split(".")[0] == "zones" for key in keys):
        yield Effect("zone", "zones", "viewers may be in another zone from their next request on")
    if any(key.startswith("limits.") for key in keys):
        yield Effect("limit", "limits", "new limits hold at once, for connections that are open too")
    yield from _relay_effects(old, new, keys)
    if any(_is_below(key, "multicast") for key in keys):
        yield Effect("multicast", "multicast", "multicast proxies change; flows that are wanted before and after go on")
    if any(_is_below(key, "steering") for key in keys):
        yield Effect(
            "steering", "steering", "how viewers come to the box changes: browsers read /proxy.pac again within "
            "minutes, "
            "players the content steering document after its ttl",
        )  # fmt: skip
    yield from _privacy_effects(new, keys)
    if "site.name" in keys:
        yield Effect("cache", "site", f"Cache-Status and Via say '{new.site.name}' from now on")


def _link_effects(old: Policy, new: Policy, keys: set[str]) -> Iterator[Effect]:
    is_shared = any(key.endswith((".guarantee", ".ceiling")) for key in keys) or list(old.classes) != list(new.classes)
    if any(_is_below(key, "links") for key in keys) or (new.links and is_shared):
        yield Effect("link", "links", "WAN links or their budgets change, at once, for transfers under way too")
    if any(_is_below(key, "marks") for key in keys):
        yield Effect("link", "marks", "other traffic is marked from now on, flows under way too")
    for name, before in old.origins.items():
        after = new.origins.get(name)
        if after is not None and before.link != after.link:
            way = f"by link {', else '.join(after.link)}" if after.link else "as the system's routes say"
            yield Effect("origin", name, f"origin '{name}': new connections go {way}")


def _relay_effects(old: Policy, new: Policy, keys: set[str]) -> Iterator[Effect]:
    for name, before in old.relays.items():
        after = new.relays.get(name)
        if after is None:
            yield Effect("relay", name, f"relay '{name}' ends: its groups are left, its receivers get nothing more")
        elif any(key.startswith(f"relays.{name}.") for key in keys):
            # What the data plane's input is made of: services/relays/flow.py holds the same (a test says so).
            if any(f"relays.{name}.{key}" in keys for key in RELAY_INPUT_KEYS):
                yield Effect("relay", name, f"relay '{name}': its input begins anew, with a gap of some milliseconds")
            if before.to != after.to:
                yield Effect("relay", name, f"relay '{name}': outputs change; receivers that stay see no gap")
    for name in new.relays:
        if name not in old.relays:
            yield Effect("relay", name, f"relay '{name}' begins")
    if any(_is_below(key, "udpxy") for key in keys):
        yield Effect("relay", "udpxy", "which groups viewers may ask for changes; who reads one that stays sees no gap")


def _privacy_effects(new: Policy, keys: set[str]) -> Iterator[Effect]:
    kept = {"zone": "their zone only", "hash": "a keyed hash of their addresses", "truncate": "shortened addresses"}
    if "privacy.viewer" in keys:
        yield Effect("privacy", "viewer", f"of viewers, logs keep {kept[new.privacy.viewer]} from now on")
    if "logs.access.enabled" in keys:
        is_on = new.logs.access.enabled
        yield Effect("privacy", "access", f"each answer to a viewer is {'written to disk' if is_on else 'not logged'}")
    for key in ("privacy.retention", "logs.access.retention", "logs.access.max_size", "logs.security.retention",
                "logs.security.max_size"):  # fmt: skip
        if key in keys:
            yield Effect("privacy", key, f"{key} has changed: lines that are older or too many are removed at once")


def _is_below(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _restart_effects(keys: set[str]) -> Iterator[Effect]:
    for key in RESTART_KEYS:
        if any(_is_below(found, key) for found in keys):
            text = f"{key} holds for the life of the process: a running daemon refuses this policy, restart it"
            yield Effect("restart", key, text)


def _listener_effects(old: Policy, new: Policy, keys: set[str]) -> Iterator[Effect]:
    moved = False
    for name in (*old.listen, *(name for name in new.listen if name not in old.listen)):
        before, after = old.listen.get(name), new.listen.get(name)
        if before is None and after is not None:
            moved = True
            yield Effect("listener", name, f"listener '{name}' opens on {after.address}")
        elif after is None and before is not None:
            moved = True
            yield Effect(
                "listener", name, f"listener '{name}' on {before.address} closes: new connections there are refused, "
                "open ones go on",
            )  # fmt: skip
        elif before is not None and after is not None and before.address != after.address:
            moved = True
            yield Effect(
                "listener", name, f"listener '{name}' moves from {before.address} to {after.address}: new connections "
                "to the old address are refused, open ones go on",
            )  # fmt: skip
        if before is not None and after is not None and f"listen.{name}.zones" in keys:
            who = f"only viewers of {', '.join(after.zones)} are" if after.zones else "everybody is"
            yield Effect("listener", name, f"listener '{name}': {who} served")
        if before is not None and after is not None and (before.tls, before.legacy) != (after.tls, after.legacy):
            what = f"TLS with {', '.join(after.tls)}" if after.tls else "plain HTTP"
            versions = ", in old versions too" if after.tls and after.legacy else ""
            yield Effect("listener", name, f"listener '{name}': new connections speak {what}{versions}")
        if before is not None and after is not None and before.http2 != after.http2:
            what = {"tls": "over TLS only", "cleartext": "with and without TLS", "never": "no more"}[after.http2]
            yield Effect("listener", name, f"listener '{name}': new connections may speak HTTP/2 {what}")
    if moved and new.origins:
        # A connection upstream must never lead to one of our own listeners, so what was opened before is not trusted.
        yield Effect("origin", "*", "our own addresses change: connections to origins are opened anew")


def _origin_effects(name: str, old: Origin, new: Origin) -> Iterator[Effect]:
    before = old.model_dump(mode="json", by_alias=True)
    after = new.model_dump(mode="json", by_alias=True)
    if any(before[key] != after[key] for key in WAY_KEYS):
        yield Effect(
            "origin", name, f"origin '{name}' is reached another way: open connections finish what they transfer and "
            "are not reused; what is stored stays",
        )  # fmt: skip
    elif any(before[key] != after[key] for key in ("connections", "timeouts")):
        yield Effect("origin", name, f"origin '{name}': connections are reused")
    if any(before[key] != after[key] for key in ("upgrade", "tunnels")):
        yield Effect("origin", name, f"origin '{name}': open tunnels stay, new ones go by the new policy")
    routes = {(host, path) for host in old.hosts for path in old.paths}
    gone = routes - {(host, path) for host in new.hosts for path in new.paths}
    if gone:
        shown = ", ".join(sorted(host + path for host, path in gone)[:5])
        yield Effect(
            "route", name, f"origin '{name}' leaves {len(gone)} of {len(routes)} routes ({shown}): answered by another "
            "origin, or by 421 or 404",
        )  # fmt: skip
    if old.profile != new.profile:
        yield Effect("route", name, f"origin '{name}': profile {new.profile} decides what may be asked and stored")
    if before["credential"] != after["credential"]:
        what = "every viewer's credential is judged anew" if new.credential else "no credential is judged any more"
        yield Effect("credential", name, f"origin '{name}': {what}")
        if places_of(old.credential).parameters != places_of(new.credential).parameters:
            text = f"origin '{name}': its keys change, so what is stored of it is not found any more"
            yield Effect("cache", name, text)
    if any(before[key] != after[key] for key in ("methods", "body_max")):
        yield Effect("route", name, f"origin '{name}': other methods or larger bodies are passed or refused")
    if before["max_offline"] != after["max_offline"]:
        limit = f"{after['max_offline']} after its origin confirmed it" if after["max_offline"] else "its lifetime"
        yield Effect("cache", name, f"origin '{name}': content is used unchecked until {limit} at most")
    if old.forward_tags != new.forward_tags:
        what = "reach viewers" if new.forward_tags else "are kept from viewers"
        yield Effect("route", name, f"origin '{name}': tags of what is fetched from now on {what}")
    if old.class_ != new.class_:
        yield Effect("cache", name, f"origin '{name}': what is stored from now on is of class {new.class_ or 'none'}")
