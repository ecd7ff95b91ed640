"""Cache poisoning and deception against the running daemon: what one viewer sends never changes what another one gets.

The origin answers `/echo` with all that it was sent, so that any field of an attacker's request which reached it stands
in the stored body. The victim's answer must equal, byte for byte, the answer of a box that never saw the attack.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from recording_origin import RecordingOrigin
from running_box import HOST, Response, RunningBox, policy_for

EVIL = "evil.example"

# Lines that an attacker adds, each known to change an answer of some framework without being in any key.
FIELDS = [
    f"X-Forwarded-Host: {EVIL}", f"X-Forwarded-Scheme: {EVIL}", "X-Forwarded-Proto: https", "X-Forwarded-Port: 666",
    f"X-Forwarded-Server: {EVIL}", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Prefix: /evil",
    f"Forwarded: host={EVIL}",
    f"X-Host: {EVIL}", f"X-HTTP-Host-Override: {EVIL}", "X-Original-URL: /account/evil",
    "X-Rewrite-URL: /account/evil",
    f"X-Original-Host: {EVIL}", f"X-Backend-Host: {EVIL}", "X-HTTP-Method-Override: POST", "X-HTTP-Method: DELETE",
    "X-Method-Override: PUT", "Front-End-Https: on", "X-Real-IP: 127.0.0.1", "X-Client-IP: 127.0.0.1",
    "True-Client-IP: 127.0.0.1", "Proxy-Connection: keep-alive", "Proxy-Authorization: Basic ZXZpbA==",
    f"Referer: http://{EVIL}/",
    f"User-Agent: {EVIL}", "Cookie: session=evil", "Cookie: a=1; b=2", "Accept: application/evil",
    "Accept-Language: xx-evil",
    "Accept-Charset: evil", "Accept-Encoding: evil", "CMCD-Session: sid=evil", "CMCD-Request: evil",
    "CMCD-Object: br=666",
    "X-Middleware-Prefetch: 1", "RSC: 1", "Next-Router-Prefetch: 1", "Purpose: prefetch", "Sec-Fetch-Dest: evil",
    "DNT: 1",
    "X-Wap-Profile: http://evil.example/wap.xml", "X-Amz-Website-Redirect-Location: /evil", "Max-Forwards: 0",
    "TE: trailers",
    "Upgrade: websocket", "Connection: Host", "Connection: Via, CDN-Loop, X-Evil", "Trailer: Host",
    "Expect: 100-continue",
    "Via: 1.1 evil", "CDN-Loop: evil", "X-Evil: \xe9\xff", "Range: bytes=0-1", "If-None-Match: *",
    "If-Match: \"evil\"",
    "If-Range: \"evil\"", "If-Modified-Since: Thu, 01 Jan 2037 00:00:00 GMT",
    "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
    "Cache-Control: no-cache, no-store, max-age=0", "Pragma: no-cache", "Cache-Control: only-if-cached",
    "Content-Type: text/evil",
    "Content-Length: 0", "X-Long: " + "e" * 15000, "Transfer-Coding: chunked", "Content-Location: /evil",
]  # fmt: skip
# What does go up: loops are found by Via and CDN-Loop, ranges are asked for. Only an origin that prints them could
# tell, as this one does and no other. (The query parameter CMCD is such a thing too: it goes up and is not in the key.)
REACH_THE_ORIGIN = ("Via: 1.1 evil", "CDN-Loop: evil", "Range: bytes=0-1")
HOSTS = [HOST.upper(), f"{HOST}.", f"{HOST}:8080", f"{HOST}:666", f"{HOST.title()}.:80"]
# What follows the path that the victim will ask for; each is another resource, or the same one seen from another key.
TARGETS = [
    ";evil", ";a=b", "%3bevil", "/../{name}", "/%2e%2e/{name}", "%2f", "/", "//", "%00", "%0d%0aX:evil", "%20",
    "?evil=1",
    "?utm_source=evil", "?&", "?;", "?a=1&a=2", "?callback=evil", "%3fevil", "%23evil", "/.", "\\", "%5c",
]  # fmt: skip


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture(scope="module")
def box(origin: RecordingOrigin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    policy = policy_for(origin.url)
    policy["origins"]["portal"] = {"from": [origin.url], "hosts": ["portal.example"], "profile": "generic"}
    policy["origins"]["named"] = {"from": [origin.url], "hosts": ["named.example"], "upstream_host": "viewer"}
    with RunningBox(tmp_path_factory.mktemp("box"), policy) as running:
        yield running


def clean_body(origin: RecordingOrigin, target: str, host: str = "") -> bytes:
    """What the origin says to a request that carries nothing of a viewer's."""
    host = host or f"127.0.0.1:{origin.port}"
    lines = ["Host: " + host, "Accept: */*", "User-Agent: video-accelerator", "Via: 1.1 test", "CDN-Loop: test"]
    return (f"GET {target}\n" + "".join(f"{line}\n" for line in lines)).encode()


def attack(box: RunningBox, *lines: str, target: str, host: str = HOST, method: str = "GET") -> Response | None:
    with contextlib.suppress(ConnectionError):
        return box.get(target, *lines, host=host, method=method)
    return None


@pytest.mark.parametrize(
    "number", range(len(FIELDS)), ids=[line[:30].encode("ascii", "replace").decode() for line in FIELDS]
)
def test_a_field_changes_nothing_for_the_next_viewer(number: int, box: RunningBox, origin: RecordingOrigin) -> None:
    line, target = FIELDS[number], f"/echo/field/{number}"
    attack(box, line, target=target)
    victim = box.get(target)
    assert victim.status == 200
    if line not in REACH_THE_ORIGIN:
        assert victim.body == clean_body(origin, target)
    assert EVIL.encode() not in victim.raw


@pytest.mark.parametrize("host", HOSTS)
def test_the_hosts_spelling_changes_nothing(host: str, box: RunningBox, origin: RecordingOrigin) -> None:
    target = f"/echo/host/{HOSTS.index(host)}"
    response = attack(box, target=target, host=host)
    assert response is not None
    assert response.status == 200
    victim = box.get(target)
    assert victim.body == clean_body(origin, target)
    assert "hit" in victim.fields["cache-status"]


@pytest.mark.parametrize("host", ["NAMED.example", "named.example.", "named.example:666"])
def test_bug_the_hosts_spelling_reached_the_origin_and_the_store(
    host: str, box: RunningBox, origin: RecordingOrigin
) -> None:
    """With `upstream_host: viewer` one viewer's `Host: named.example:666` went up and into what all others got."""
    target = f"/echo/named/{host}"
    attack(box, target=target, host=host)
    assert box.get(target, host="named.example").body == clean_body(origin, target, host="named.example")


@pytest.mark.parametrize("number", range(len(TARGETS)), ids=TARGETS)
def test_another_target_is_another_key_or_the_same_answer(
    number: int, box: RunningBox, origin: RecordingOrigin
) -> None:
    name = f"{number}x"
    target = f"/echo/target/{name}"
    attack(box, target=target + TARGETS[number].replace("{name}", name))
    assert box.get(target).body == clean_body(origin, target)


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("GET", ("Content-Length: 9",)),
        ("GET", ("Transfer-Encoding: chunked",)),
        ("HEAD", ()),
        ("POST", ("Content-Length: 0",)),
        ("OPTIONS", ()),
        ("TRACE", ()),
        ("BREW", ()),
        ("HEAD", (f"X-Forwarded-Host: {EVIL}",)),
    ],
)
def test_another_method_or_a_body_changes_nothing(
    method: str, lines: tuple[str, ...], box: RunningBox, origin: RecordingOrigin
) -> None:
    target = f"/echo/method/{method}/{len(lines)}/{abs(hash(lines))}"
    attack(box, *lines, target=target, method=method)
    assert box.get(target).body == clean_body(origin, target)


@pytest.mark.parametrize("status", [400, 401, 403, 405, 408, 413, 414, 429, 431, 500, 501, 502, 503, 505])
def test_a_provoked_error_is_not_kept(status: int, box: RunningBox, origin: RecordingOrigin) -> None:
    """CPDoS: the origin marks its errors as fresh for a minute."""
    target = f"/status/{status}"
    assert box.get(target).status == status
    n_asked = len(origin.asked)
    assert box.get(target).status == status
    assert len(origin.asked) == n_asked + 1


@pytest.mark.parametrize("status", [400, 413, 414, 431, 501])
@pytest.mark.parametrize("line", ["X-Long: " + "e" * 3000, "X-Meta: \x08", "X-High: \xff\xfe", "Expect: 100-continue"])
def test_an_error_that_may_be_provoked_is_not_kept_in_generic_either(
    status: int, line: str, box: RunningBox, origin: RecordingOrigin
) -> None:
    """CPDoS where errors with a lifetime are stored: not if anything in the request was odd (decision 0150)."""
    target = f"/status/{status}/{len(line)}"
    attack(box, line, target=target, host="portal.example")
    n_asked = len(origin.asked)
    assert "fwd" in box.get(target, host="portal.example").fields["cache-status"]
    assert len(origin.asked) == n_asked + 1
    assert "hit" in box.get(target, host="portal.example").fields["cache-status"]


def test_generic_forwards_fields_that_no_origin_may_trust(box: RunningBox) -> None:
    """Denied fields stay away; others go up, as RFC 9110 has it, and Vary is the origin's duty."""
    denied = [line for line in FIELDS if line.startswith(("X-Forwarded", "X-Original-URL", "X-Rewrite", "Forwarded"))]
    denied += ["X-HTTP-Method-Override: POST", "Proxy-Authorization: Basic ZXZpbA=="]
    for number, line in enumerate(denied):
        body = box.get(f"/echo/generic/{number}", line, host="portal.example").body
        assert line.partition(":")[0].lower().encode() not in body.lower()
    assert b"X-Tenant: 7\n" in box.get("/echo/generic/plain", "X-Tenant: 7", host="portal.example").body


DELIMITERS = [
    "/", ";", "!", "$", "&", "'", "(", ")", "*", "+", ",", ":", "=", "@", "~", "-", "_", ".", "..", "//", "/./",
    "/../", ";/", "/;",
    "%00", "%0a", "%0d", "%09", "%20", "%21", "%22", "%23", "%24", "%25", "%26", "%27", "%2c", "%2e", "%2f", "%2F",
    "%3a", "%3b", "%3c",
    "%3d", "%3f", "%40", "%5b", "%5c", "%5d", "%5e", "%60", "%7b", "%7c", "%7d", "%7e", "%7f", "%ff", "%252f", "?",
    "?/", "|",
]  # fmt: skip
EXTENSIONS = ["x.css", "x.js", "x.ts", "x.m3u8", "x.mpd", "x.m4s", "x.mp4", "favicon.ico"]


def test_a_personal_page_is_not_stored_whatever_its_path_ends_in(box: RunningBox, origin: RecordingOrigin) -> None:
    assert len(DELIMITERS) >= 50
    for delimiter in DELIMITERS:
        for extension in EXTENSIONS:
            for host in (HOST, "portal.example"):
                response = attack(box, target=f"/account/{delimiter}{extension}", host=host)
                assert response is not None
                assert response.status in (200, 400)
    listed = box.control("cache ls", limit=10000)["objects"]
    assert [row["url"] for row in listed if "/account" in row["url"]] == []
    # Asked again it goes up again, for this viewer alone.
    n_asked = len(origin.asked)
    assert "fwd" in box.get("/account/x.css").fields["cache-status"]
    assert len(origin.asked) == n_asked + 1


def test_a_path_without_a_lifetime_is_not_stored_for_its_ending(box: RunningBox) -> None:
    for name in ("profile.css", "profile.js", "profile.png", "profile;.css", "profile%2fx.css", "profile/x.html"):
        assert box.get(f"/silent/{name}").status == 200
    listed = box.control("cache ls", limit=10000)["objects"]
    assert [row for row in listed if "/silent" in row["url"] and row["state"] == "fresh"] == []
