"""Tries a lane as a viewer would, from where the command runs, and says why it would fail: name, firewall, certificate,
CORS, mixed content, browsers' permission for local networks. Sends one small request for each; changes nothing.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TypeVar
from urllib.parse import urlsplit

from accelerator.doctor.finding import Finding, Report
from accelerator.policy.model import Policy

HEALTH = "/.well-known/accelerator/health"
DOCUMENT = "/.well-known/accelerator/steering"
TIMEOUT_S = 4.0
_BODY_MAX = 1 << 20
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Viewer:
    """From where it is tried. `page`: the page that has the player; `box`: an address to use in place of what names
    resolve to; `ca`: further authorities; `url`: one that the player loads, to be tried too."""

    page: str = "https://portal.example"
    box: str = ""
    ca: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Got:
    status: int
    fields: Mapping[str, str]
    body: bytes


class LaneError(Exception):
    """A step failed. `stage`: name, firewall, certificate, answer."""

    def __init__(self, stage: str, text: str) -> None:
        super().__init__(text)
        self.stage = stage


def try_lane(lane: str, policy: Policy, viewer: Viewer) -> Report:
    """Every step of the lane that can be made."""
    report = Report()
    if not viewer.url and lane in ("hosts", "prefix", "intercept"):
        report.skip("cors", "whether players may read the video depends on the origin's answer: name one with --url")
    LANES[lane](policy, viewer, report)
    return report


# -- lanes -------------------------------------------------------------------------------------------------------------


def _hosts(policy: Policy, viewer: Viewer, report: Report) -> None:
    """The origins' host names lead to the box."""
    names = [host for origin in policy.origins.values() for host in origin.hosts if "*" not in host]
    if not names:
        report.skip("hosts", "the policy has patterns only: no name can be tried")
    for name in dict.fromkeys(names):
        for listener, scheme, port in _listening(policy):
            url = f"{scheme}://{_bracketed(name)}:{port}{HEALTH}"
            if _try_url(report, viewer, name, url, f"listen.{listener}") and _is_of(viewer, name):
                _try_media(report, viewer, name, f"{scheme}://{_bracketed(name)}:{port}{_target(viewer)}")


def _prefix(policy: Policy, viewer: Viewer, report: Report) -> None:
    if not policy.steering.prefix:
        report.add("prefix", 1, [_off("prefix", "steering.prefix: true")])
        return
    for host in _own_hosts(policy, viewer):
        for listener, scheme, port in _listening(policy):
            base = f"{scheme}://{_bracketed(host)}:{port}"
            if _try_url(report, viewer, host, base + HEALTH, f"listen.{listener}"):
                for name, origin in policy.origins.items():
                    path = origin.paths[0].rstrip("/") + "/"
                    _try_origin(report, viewer, host, f"{base}/{name}{path}", name)
                    if any(_is_of(viewer, each) for each in origin.hosts):
                        _try_media(report, viewer, host, f"{base}/{name}{_target(viewer)}")


def _proxy(policy: Policy, viewer: Viewer, report: Report) -> None:
    proxy = policy.steering.proxy
    if proxy is None:
        report.add("proxy", 1, [_off("proxy", "steering.proxy.address")])
        return
    url = f"http://{proxy.address}/proxy.pac"
    got = _step(report, "pac", url, lambda: _get(viewer, url))
    if got is not None:
        kind = got.fields.get("content-type", "no type")
        wrong = got.status != 200 or not kind.startswith("application/x-ns-proxy-autoconfig")
        report.add("pac", 1, [Finding(
            "pac", "bad", url,
            f"{url} answers {got.status}, {kind}: browsers need a PAC.",
            "accelctl policy show | grep -A4 proxy:",
        )] if wrong else [])  # fmt: skip
    for name, origin in policy.origins.items():
        host = next((each for each in origin.hosts if "*" not in each), None)
        if host is None:
            continue
        target = f"http://{_bracketed(host)}{HEALTH}"
        got = _step(report, "proxy", target, lambda target=target: _get(viewer, url, target))  # type: ignore[misc]
        if got is not None and got.status != 200:
            report.add("proxy", 1, [_answered(name, target, got.status)])


def _document(policy: Policy, viewer: Viewer, report: Report) -> None:
    document = policy.steering.document
    if document is None:
        report.add("document", 1, [_off("document", "steering.document.pathways")])
        return
    hosts = [document.host] if document.host else list(_own_hosts(policy, viewer))
    for host in hosts:
        for _, scheme, port in _listening(policy):
            url = f"{scheme}://{_bracketed(host)}:{port}{DOCUMENT}"
            got = _step(report, "document", url, lambda url=url: _get(viewer, url))  # type: ignore[misc]
            if got is None:
                continue
            report.add("document", 1, _judge_page(viewer, host, url, got))
            try:
                is_whole = got.status == 200 and json.loads(got.body)["VERSION"] == 1
            except (ValueError, KeyError, TypeError):
                is_whole = False
            if not is_whole:
                report.add("document", 1, [_answered("steering", url, got.status)])


def _intercept(policy: Policy, viewer: Viewer, report: Report) -> None:
    """The origins' names lead to the origins, and the box answers all the same."""
    wanted = policy.steering.intercept
    if wanted is None:
        report.add("intercept", 1, [_off("intercept", "steering.intercept")])
        return
    if viewer.box:
        viewer = replace(viewer, box="")
        report.skip("box", "--box has no sense here: viewers' packets go to the origin's address")
    names = [host for origin in policy.origins.values() for host in origin.hosts if "*" not in host]
    for name in dict.fromkeys(names):
        try:
            address = ip_address(_address(viewer, name))
        except LaneError:
            address = None  # said below
        if address is not None and not any(address in net for net in wanted.destinations):
            listed = ", ".join(map(str, wanted.destinations))
            report.add("intercept", 1, [Finding(
                "destination", "bad", name, f"{name} leads to {address}, and only what goes to {listed} is taken.",
                f"add its network to steering.intercept.destinations; or, if {address} is the box, that is lane hosts",
            )])  # fmt: skip
            continue
        for port in wanted.ports:
            url = f"http://{_bracketed(name)}:{port}{HEALTH}"
            got = _step(report, "intercept", url, lambda url=url: _get(viewer, url))  # type: ignore[misc]
            if got is None:
                continue
            if got.status != 200 or got.body != b"ok\n":
                report.add("intercept", 1, [Finding(
                    "intercept", "bad", url, f"{url} is answered by the origin ({got.status}): nothing takes it "
                    "on its way.",
                    "accelctl events: intercept-off says why; accelctl steering recipes: what the router needs",
                )])  # fmt: skip
            elif _is_of(viewer, name):
                _try_media(report, viewer, name, f"http://{_bracketed(name)}:{port}{_target(viewer)}")


def _connect(policy: Policy, viewer: Viewer, report: Report) -> None:
    if not policy.steering.connect:
        report.add("connect", 1, [_off("connect", "steering.connect: [HOST:PORT]")])
        return
    for host in _own_hosts(policy, viewer):
        for _, scheme, port in _listening(policy):
            if scheme == "http":
                for each in policy.steering.connect:
                    where = f"http://{_bracketed(host)}:{port}"
                    status = _step(report, "connect", where, lambda where=where, each=each: _tunnel(  # type: ignore[misc]
                        viewer, where, str(each)))  # fmt: skip
                    if status is not None and status != 200:
                        report.add("connect", 1, [Finding(
                            "connect", "bad", str(each), f"CONNECT {each} through {where} is answered by {status}.",
                            "accelctl events",
                        )])  # fmt: skip


LANES: Mapping[str, Callable[[Policy, Viewer, Report], None]] = {
    "connect": _connect,
    "document": _document,
    "hosts": _hosts,
    "intercept": _intercept,
    "prefix": _prefix,
    "proxy": _proxy,
}


# -- steps -------------------------------------------------------------------------------------------------------------


def _listening(policy: Policy) -> list[tuple[str, str, int]]:
    return [
        (name, "https" if row.tls else "http", row.address.port)
        for name, row in policy.listen.items()
        if row.address.port
    ]


def _own_hosts(policy: Policy, viewer: Viewer) -> Sequence[str]:
    """What the box is called; else what it listens on."""
    listening = [row.address.host for row in policy.listen.values() if not ip_address(row.address.host).is_unspecified]
    return policy.steering.hosts or ([viewer.box] if viewer.box else list(dict.fromkeys(listening)))


def _try_url(report: Report, viewer: Viewer, host: str, url: str, what: str) -> bool:
    got = _step(report, what, url, lambda: _get(viewer, url))
    if got is None:
        return False
    if got.status != 200 or got.body != b"ok\n":
        report.add("name", 1, [Finding(
            "name", "bad", host,
            f"{url} is answered by something else than the box ({got.status}): {host} leads elsewhere.",
            f"getent ahosts {host}; let DNS of this site give the box's address for it",
        )])  # fmt: skip
        return False
    report.add("page", 1, _judge_page(viewer, host, url, got))
    return True


def _try_origin(report: Report, viewer: Viewer, host: str, url: str, origin: str) -> None:
    got = _step(report, "origin", url, lambda: _get(viewer, url, method="HEAD"))
    if got is not None and (got.status in (421, 501) or got.status >= 500):
        report.add("origin", 1, [_answered(origin, url, got.status)])


def _is_of(viewer: Viewer, host: str) -> bool:
    """Whether the URL that was named is one of this host of an origin."""
    asked = urlsplit(viewer.url).hostname or ""
    return asked == host or (host.startswith("*.") and asked.endswith(host[1:]))


def _target(viewer: Viewer) -> str:
    parts = urlsplit(viewer.url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _try_media(report: Report, viewer: Viewer, host: str, url: str) -> None:
    """What the player loads, as it loads it: the answer may be read by the page that asked, or not."""
    got = _step(report, "media", url, lambda: _get(viewer, url, field="Range: bytes=0-0"))
    if got is None:
        return
    if got.status not in (200, 206):
        report.add("media", 1, [_answered(host, url, got.status)])
        return
    report.add("cors", 1, [each for each in _judge_page(viewer, host, url, got) if each.code == "cors"])


def _judge_page(viewer: Viewer, host: str, url: str, got: Got) -> list[Finding]:
    """What a browser would refuse although the box answers."""
    page, here = urlsplit(viewer.page), urlsplit(url)
    found = []
    if page.scheme == "https" and here.scheme == "http" and not _is_loopback(host):
        found.append(Finding(
            "mixed-content", "warn", url,
            f"A page of {viewer.page} is https and may not load {here.scheme}://{here.netloc}: "
            "browsers block mixed content.", "give the listener a certificate: listen.NAME.tls, accelctl csr",
        ))  # fmt: skip
    allowed = got.fields.get("access-control-allow-origin")
    if page.netloc != here.netloc and allowed not in ("*", f"{page.scheme}://{page.netloc}"):
        found.append(Finding(
            "cors", "bad", url,
            f"The answer has no Access-Control-Allow-Origin for {viewer.page}: players there can't read it.",
            "let the origin send Access-Control-Allow-Origin",
        ))  # fmt: skip
    if _is_local(viewer, host) and not _is_local(viewer, page.hostname or "") and page.netloc != here.netloc:
        found.append(Finding(
            "local-network", "info", host,
            f"{host} is in a local network, so Chrome asks viewers of {viewer.page} for a "
            "permission (Local Network Access) unless the browser policy LocalNetworkAccessAllowedForUrls names it.",
            f'browser policy: {{"LocalNetworkAccessAllowedForUrls": ["{page.scheme}://{page.netloc}"]}}',
        ))  # fmt: skip
    return found


def _step(report: Report, check: str, url: str, attempt: Callable[[], Answer]) -> Answer | None:
    """What a step gave, or None, and why is in the report."""
    report.add(check, 1, [])
    try:
        return attempt()
    except LaneError as fault:
        mends = {
            "name": f"getent ahosts {urlsplit(url).hostname}",
            "firewall": "accelctl steering matrix: what firewalls have to let through",
            "certificate": "accelctl csr: a certificate for this name; or --ca with the company's authority",
            "answer": f"curl -v {url}",
        }
        report.findings.append(Finding(fault.stage, "bad", url, f"{url}: {fault}.", mends[fault.stage]))
        return None


def _get(viewer: Viewer, url: str, target: str = "", method: str = "GET", field: str = "") -> Got:
    """One request. `target`: in absolute form, where `url` is a proxy's; `field`: a line more."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    stream = _open(viewer, parts.scheme, host, port)
    asked = target or parts.path + (f"?{parts.query}" if parts.query else "")
    authority = urlsplit(target).netloc if target else parts.netloc
    try:
        lines = [f"{method} {asked} HTTP/1.1", f"Host: {authority}", f"Origin: {_origin_of(viewer.page)}",
                 "User-Agent: accelerator-steering-test", "Connection: close"]  # fmt: skip
        lines += [field, "", ""] if field else ["", ""]
        stream.sendall("\r\n".join(lines).encode("latin-1"))
        response = http.client.HTTPResponse(stream, method=method)
        response.begin()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Got(response.status, fields, response.read(_BODY_MAX))
    except (OSError, http.client.HTTPException) as fault:
        raise LaneError("answer", f"no HTTP answer ({fault or 'closed'})") from None
    finally:
        stream.close()


def _tunnel(viewer: Viewer, proxy: str, authority: str) -> int:
    parts = urlsplit(proxy)
    stream = _open(viewer, "http", parts.hostname or "", parts.port or 80)
    try:
        stream.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode("latin-1"))
        response = http.client.HTTPResponse(stream, method="CONNECT")
        response.begin()
        return response.status
    except (OSError, http.client.HTTPException) as fault:
        raise LaneError("answer", f"no HTTP answer ({fault or 'closed'})") from None
    finally:
        stream.close()


def _open(viewer: Viewer, scheme: str, host: str, port: int) -> socket.socket:
    try:
        made = socket.create_connection((_address(viewer, host), port), timeout=TIMEOUT_S)
    except TimeoutError:
        raise LaneError("firewall", f"nothing answers on port {port}: something on the way drops it") from None
    except OSError as fault:
        raise LaneError("firewall", f"port {port}: {(fault.strerror or str(fault)).lower()}") from None
    if scheme != "https":
        return made
    context = ssl.create_default_context()
    if viewer.ca:
        context.load_verify_locations(viewer.ca)
    try:
        return context.wrap_socket(made, server_hostname=host)
    except ssl.SSLCertVerificationError as fault:
        made.close()
        raise LaneError("certificate", f"browsers refuse the certificate: {fault.verify_message.rstrip('.')}") from None
    except OSError as fault:
        made.close()
        raise LaneError("certificate", f"no TLS: {(fault.strerror or str(fault)).lower()}") from None


def _address(viewer: Viewer, host: str) -> str:
    if viewer.box:
        return viewer.box
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        raise LaneError("name", f"{host} has no address here") from None


def _origin_of(page: str) -> str:
    parts = urlsplit(page)
    return f"{parts.scheme}://{parts.netloc}"


def _is_local(viewer: Viewer, host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        pass
    try:
        return not ip_address(_address(viewer, host)).is_global
    except (LaneError, ValueError):
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _off(lane: str, key: str) -> Finding:
    return Finding("lane-off", "bad", lane, f"The policy doesn't have the lane '{lane}'.", f"add {key} to the policy")


def _answered(subject: str, url: str, status: int) -> Finding:
    return Finding("answer", "bad", subject, f"{url} is answered by {status}.", f"curl -v {url}")
