"""What accelerator-netd says of the kernel, judged: does it run where the policy needs it, is all there that is wanted,
and who undoes it. Pure; the daemon's answer to `routes` is read as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerator.doctor.finding import Finding
from accelerator.policy.model import Policy


def needs_of(policy: Policy) -> list[str]:
    """What of the policy only netd can do."""
    needs = []
    if policy.multicast.proxies or policy.multicast.routes:
        needs.append("multicast")
    if any(link.gateway for link in policy.links.values()):
        needs.append("links' routes")
    if policy.steering.intercept is not None:
        needs.append("interception")
    return needs


def judge_kernel(needs: Sequence[str], routes: Mapping[str, Any] | None, why: str) -> Iterator[Finding]:
    """`routes` None: the daemon runs, and netd doesn't answer it; `why`."""
    if routes is None:
        yield Finding(
            "netd-missing", "bad", "accelerator-netd",
            f"The policy needs accelerator-netd for {' and '.join(needs)}, and it can't be asked ({why.rstrip('.')}).",
            "systemctl enable --now accelerator-netd",
        )  # fmt: skip
        return
    # Both families for one reason, mostly.
    reasons: dict[str, list[str]] = {}
    for family, reason in routes.get("refused", {}).items():
        reasons.setdefault(str(reason), []).append({"ipv4": "IPv4", "ipv6": "IPv6"}.get(family, str(family)))
    for reason, families in reasons.items():
        yield Finding(
            "multicast-refused", "bad", "accelerator-netd",
            f"Multicast of {' and '.join(families)} is not routed: {reason.rstrip('.')}.",
            "end the other program, or give netd a table of its own: multicast.table: 8600, then accelctl policy apply"
            if "another program" in reason else "journalctl -u accelerator-netd",
        )  # fmt: skip
    kernel = routes.get("kernel", {})
    if kernel.get("problem"):
        yield Finding(
            "kernel-refuses", "bad", "accelerator-netd",
            f"The kernel refuses what the policy wants: {kernel['problem']}.", "accelctl routes",
        )  # fmt: skip
    for name in kernel.get("waiting_for", ()):
        yield Finding(
            "kernel-waits", "bad", str(name), f"Routes and queues of interface {name} wait for it: there is none.",
            "ip -brief link",
        )  # fmt: skip
    for table in kernel.get("taken_tables", ()):
        yield Finding(
            "kernel-taken", "bad", f"table {table}",
            f"Routing table {table} has another program's routes, so ours stay out of it.",
            f"ip route show table {table}",
        )  # fmt: skip
    for name in kernel.get("taken_interfaces", ()):
        yield Finding(
            "kernel-taken", "warn", str(name),
            f"{name} has another program's queues, so ours stay out: nothing is shaped.", f"tc qdisc show dev {name}",
        )  # fmt: skip
    for what in kernel.get("stopped", ()):
        yield Finding(
            "kernel-fight", "bad", str(what),
            f"Another program undoes {what} each time, so it is left alone for a while.", "accelctl events",
        )  # fmt: skip
    if kernel.get("n_steps") and not kernel.get("problem") and not kernel.get("stopped"):
        yield Finding(
            "kernel-differs", "warn", "accelerator-netd",
            f"{kernel['n_steps']} things in the kernel are not yet as the policy wants them.",
            "accelctl routes --dry-run",
        )  # fmt: skip
