"""What is in the way of the box itself: clock, disk, certificates, names, origins and what they answer. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime

from accelerator.doctor.facts import Answer, Certificate, DiskFolder, Upstream
from accelerator.doctor.finding import Finding
from accelerator.protocols.cache_decide import Reason, decide, is_fresh_on_arrival
from accelerator.protocols.fields import get_first
from accelerator.protocols.origin_rules import OriginRules

CLOCK_SLACK_S = 5.0
CLOCK_WRONG_S = 60.0
DNS_SLOW_S = 1.0
EXPIRES_SOON_S = 30 * 86_400.0
_RESERVE_BYTES = 64 << 20
_STATUS_OK = (200, 203, 206)
_WHY_NOT_STORED = {
    Reason.SET_COOKIE: "it sets a cookie",
    Reason.PRIVATE: "it says private",
    Reason.NO_STORE: "it says no-store",
    Reason.VARY_STAR: "it says Vary: *",
    Reason.AUTHORIZATION: "it answers to a log-in and doesn't say public",
    Reason.NO_LIFETIME: "it gives neither a lifetime nor anything to validate by",
    Reason.EVENT_STREAM: "it is an event stream",
    Reason.MUST_UNDERSTAND: "it says must-understand of a status that we don't",
}


def judge_clock(is_synchronised: bool | None, upstreams: Sequence[Upstream]) -> Iterator[Finding]:
    """By what several origins say, the one that differs least: one wrong clock among them is not ours."""
    skews = [skew for each in upstreams if each.answer is not None and (skew := _skew_s(each.answer)) is not None]
    if skews:
        skew_s = min(skews, key=abs)
        if abs(skew_s) > CLOCK_SLACK_S:
            side = "ahead of" if skew_s > 0 else "behind"
            yield Finding(
                "clock", "bad" if abs(skew_s) > CLOCK_WRONG_S else "warn", "time",
                f"This box's clock is {abs(skew_s):.0f} s {side} the origins', so that lifetimes and certificates are "
                "misjudged.",
                "timedatectl set-ntp true, or chronyc makestep",
            )  # fmt: skip
    elif is_synchronised is False:
        yield Finding(
            "clock-free", "info", "time", "This box's clock is not synchronised, and no origin said what time it is.",
            "timedatectl set-ntp true",
        )  # fmt: skip


def _skew_s(answer: Answer) -> float | None:
    date = get_first(answer.fields, b"date")
    if date is None or get_first(answer.fields, b"age") is not None:  # a cache's answer carries an old one
        return None
    try:
        said_s = parsedate_to_datetime(date.decode("latin-1")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    # A Date has whole seconds, and was set between the two.
    if answer.asked_wall_s - 1 <= said_s <= answer.answered_wall_s:
        return 0.0
    return answer.answered_wall_s - said_s


def judge_disk(disk: DiskFolder) -> Iterator[Finding]:
    if disk.fault:
        yield Finding(
            "disk", "bad", disk.path, f"Nothing can be kept in {disk.path}: {disk.fault}.",
            f"install -d -m 700 -o accelerator -g accelerator {disk.path}",
        )  # fmt: skip
        return
    missing = disk.size_bytes - disk.taken_bytes - max(0, disk.free_bytes - _RESERVE_BYTES)
    if missing > 0:
        yield Finding(
            "disk-small", "bad", disk.path,
            f"cache.disk.size is {_gib(disk.size_bytes)}, and its file system has {_gib(disk.free_bytes)} left besides "
            f"the {_gib(disk.taken_bytes)} that it holds.",
            f"set cache.disk.size to {_gib(max(disk.size_bytes - missing, 64 << 20))} or less, or a larger volume",
        )  # fmt: skip
    if disk.is_in_memory:
        yield Finding(
            "disk-memory", "warn", disk.path,
            f"{disk.path} is a file system in memory (tmpfs): what it holds takes memory, and is gone after a restart.",
            "set cache.disk.path to a folder on a disk",
        )  # fmt: skip


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f}GiB" if size_bytes >= 2**30 else f"{size_bytes >> 20}MiB"


def judge_certificate(certificate: Certificate, hosts: Sequence[str], now_s: float) -> Iterator[Finding]:
    """`hosts`: what viewers call the origins of this box; patterns are left out."""
    name = certificate.name
    renew = f"accelctl csr {name}, put the answer into {name}.crt, then systemctl reload accelerator"
    if certificate.fault:
        yield Finding("certificate", "bad", name, f"Certificate '{name}' can't be used: {certificate.fault}.", renew)
        return
    left_s = certificate.not_after_s - now_s
    if left_s <= 0:
        yield Finding("certificate-expired", "bad", name, f"Certificate '{name}' has expired: players refuse it.",
                      renew)  # fmt: skip
    elif certificate.not_before_s > now_s:
        yield Finding(
            "certificate-early", "bad", name, f"Certificate '{name}' is not good yet: its time or our clock is wrong.",
            "timedatectl",
        )  # fmt: skip
    elif left_s < EXPIRES_SOON_S:
        yield Finding(
            "certificate-expiring", "warn", name, f"Certificate '{name}' expires in {left_s / 86_400:.0f} days.", renew
        )
    missing = [host for host in hosts if not any(covers(each, host) for each in certificate.hosts)]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        yield Finding(
            "certificate-name", "bad", name, f"Certificate '{name}' is not for {shown}: browsers refuse it there.",
            renew,
        )  # fmt: skip


def covers(pattern: str, host: str) -> bool:
    """RFC 9525 section 6.3: a wildcard stands for one whole label, the left-most."""
    pattern, host = pattern.lower().rstrip("."), host.lower().rstrip(".")
    if pattern.startswith("*."):
        return host.partition(".")[2] == pattern[2:] and "." in pattern[2:]
    return pattern == host


def judge_upstream(upstream: Upstream, rules: OriginRules) -> Iterator[Finding]:
    origin, host = upstream.origin, upstream.host
    if upstream.own_addresses:
        yield Finding(
            "origin-is-us", "bad", origin,
            f"{host} of origin {origin} resolves to {upstream.own_addresses[0]}, which is this box: it would "
            "ask itself.",
            f"give the origin's real address in origins.{origin}.resolve, or another name in from",
        )  # fmt: skip
        return
    if upstream.stage == "dns":
        yield Finding(
            "origin-dns", "bad", origin, f"{host} of origin {origin} has no address: {upstream.fault}.",
            f"getent ahosts {host}",
        )  # fmt: skip
        return
    if upstream.dns_s > DNS_SLOW_S:
        yield Finding(
            "dns-slow", "warn", origin, f"The resolver took {upstream.dns_s:.1f} s to find {host}.",
            "see /etc/resolv.conf: the first server may not answer",
        )  # fmt: skip
    if upstream.stage in ("connect", "tls", "answer"):
        behind = f" through {upstream.via}" if upstream.via else ""
        words = {
            "connect": (f"can't be reached{behind}", f"curl -v {upstream.url}"),
            "tls": ("shows a certificate that is not accepted", f"set origins.{origin}.ca to its authority's PEM file"),
            "answer": ("doesn't answer", f"curl -v {upstream.url}"),
        }
        what, mend = words[upstream.stage]
        yield Finding(f"origin-{upstream.stage}", "bad", origin, f"{upstream.url} of origin {origin} {what}: "
                      f"{upstream.fault}.", mend)  # fmt: skip
        return
    if 0 < upstream.mtu < upstream.link_mtu:
        yield Finding(
            "path-mtu", "info", origin, f"On the way to {host} packets have at most {upstream.mtu} bytes.",
            f"tracepath {host}",
        )  # fmt: skip
    if upstream.answer is not None:
        yield from _judge_answer(upstream, upstream.answer, rules)


def _judge_answer(upstream: Upstream, answer: Answer, rules: OriginRules) -> Iterator[Finding]:
    if answer.status not in _STATUS_OK:
        if answer.status >= 500:
            yield Finding(
                "origin-error", "warn", upstream.origin,
                f"{upstream.url}{answer.path} of origin {upstream.origin} answers {answer.status}.",
                f"curl -v {upstream.url}{answer.path}",
            )  # fmt: skip
        return
    # A 206 is what we asked for, to have no whole body; viewers will ask for all of it.
    verdict = decide(
        [], b"GET", answer.path.encode(), rules, 200, answer.fields, request_wall_s=answer.asked_wall_s,
        response_wall_s=answer.answered_wall_s,
    )  # fmt: skip
    if verdict.store or verdict.shareable:
        if not is_fresh_on_arrival(verdict):
            yield Finding(
                "origin-no-lifetime", "info", upstream.origin,
                f"{upstream.url}{answer.path} is kept, and asked for again each time: it comes without a lifetime.",
                "let the origin send Cache-Control: max-age=…",
            )  # fmt: skip
        return
    why = _WHY_NOT_STORED.get(verdict.reason, str(verdict.reason))
    mend = "let the origin send Cache-Control: public, max-age=… there"
    if verdict.reason in (Reason.PRIVATE, Reason.NO_STORE):
        mend += f", or set origins.{upstream.origin}.override_private: true where every viewer may see it"
    yield Finding(
        "origin-uncacheable", "warn", upstream.origin,
        f"{upstream.url}{answer.path} of origin {upstream.origin} is never kept, because {why}: every viewer "
        "costs WAN.",
        mend,
    )  # fmt: skip


def rules_of(origin: Mapping[str, object]) -> OriginRules:
    """The switches of an origin of the policy, as far as a request without credentials needs them."""
    profile = "generic" if origin.get("profile") == "generic" else "media"
    return OriginRules(profile=profile, override_private=bool(origin.get("override_private")))  # type: ignore[arg-type]
