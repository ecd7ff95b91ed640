"""Viewers' credentials attacked where an answer may come from somewhere else than a plain hit: what is filling, what
others wait for, what is stale or refreshed, what is on the disk; and what nginx itself says of its secure links.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box import Box, Viewer, free_port, get, scenario, until
from hostile_origin import Peer, Request, in_turn, pieces, raw, reply
from origin_scripts import File, fields, noise
from recording_origin import RecordingOrigin
from running_box import RunningBox, policy_for, wait_for

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "protocols"))

from minting import EC_KEY, cat, jwt, pem

JWT, GENERIC_JWT, CAT = "jwt.example", "generic-jwt.example", "cat.example"
RULE = {"scheme": "jwt", "algorithm": "ES256", "keys": ["portal"], "issuer": "portal", "audience": "box"}
BOTH = (JWT, GENERIC_JWT)
FRESH = fields(cache_control="max-age=60", etag='"v"')
BAD = ["", "?token=", "?token=x", "?token=eyJhbGciOiJub25lIn0.e30."]


def with_key(state: Path) -> None:
    folder = state / "credentials"
    folder.mkdir(parents=True)
    (folder / "portal.pem").write_bytes(pem(EC_KEY))


def token(**claims: Any) -> str:
    now_s = int(time.time())
    return jwt("ES256", {"kid": "portal"}, **{"exp": now_s + 600, "iat": now_s - 1, **claims}).decode()


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("attacked"))
    with_key(box.state)
    for host, more in ((JWT, {}), (GENERIC_JWT, {"profile": "generic"})):
        credential = {"parameters": ["token"], "covers": "directory", "verify": {**RULE, "path_claim": "path"}}
        row = {"from": [f"http://127.0.0.1:{box.ports[0]}"], "hosts": [host], "credential": credential, **more}
        box.policy["origins"][host.partition(".")[0]] = json.loads(json.dumps(row))
    rule = {**RULE, "scheme": "cat"}
    row = {"from": [f"http://127.0.0.1:{box.ports[0]}"], "hosts": [CAT], "profile": "generic"}
    box.policy["origins"]["cat"] = {**row, "credential": {"parameters": ["token"], "verify": rule}}
    with box:
        yield box
        box.assert_sound()


async def refused(box: Box, path: str, host: str, **how: Any) -> None:
    for query in BAD:
        answer = await asyncio.wait_for(get(box, path + query, host=host, **how), 5)
        assert (answer.status, answer["Cache-Control"]) == (403, "no-store"), (query, answer)
        assert b"secret" not in answer.body


@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_who_waits_for_a_head_with_a_bad_token_gets_none_of_it(box: Box, host: str) -> None:
    """Collapsed waiters: the leader is in, the others are judged before they may wait."""
    path, good = f"/wait-{host}/a.ts", token(path=f"/wait-{host}/")
    gate = asyncio.Event()

    async def held(peer: Peer, request: Request) -> bool:
        await gate.wait()
        return await reply(b"secret", fields=FRESH)(peer, request)

    async with box.origin({path.encode(): held}) as origin:
        leader = asyncio.ensure_future(get(box, f"{path}?token={good}", host=host))
        await until(lambda: origin.requests)
        await refused(box, path, host)
        await refused(box, path, host, method="HEAD")
        gate.set()
        assert (await leader).body == b"secret"
        await refused(box, path, host)
    assert len(origin.requests) == 1


@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_what_is_filling_is_no_bypass(box: Box, host: str) -> None:
    """Read while fill: the half that is here is in memory already."""
    path, good = f"/fill-{host}/a.ts", token(path=f"/fill-{host}/")
    body = b"secret" * 20_000
    head = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nCache-Control: max-age=60\r\nETag: "v"\r\n\r\n' % len(body)
    script = pieces(head + body[:60_000], body[60_000:], gate="rest", then="keep")
    async with box.origin({path.encode(): script}) as origin:
        viewer = await Viewer.connect(box)
        viewer.ask(f"{path}?token={good}", host=host)
        await viewer.head()
        assert await viewer.bytes_of_body(60_000) == body[:60_000]
        await refused(box, path, host)
        await refused(box, path, host, fields={"Range": "bytes=0-5"})
        origin.gate("rest").set()
        assert (await viewer.answer()).body == body
        viewer.close()
    assert len(origin.requests) == 1


@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_what_is_stale_or_refreshed_behind_is_no_bypass(box: Box, host: str) -> None:
    path, good = f"/stale-{host}/a.ts", token(path=f"/stale-{host}/")
    stale = fields(cache_control="max-age=0, stale-while-revalidate=60, stale-if-error=60", etag='"v"')
    async with box.origin({path.encode(): in_turn(reply(b"secret", fields=stale), reply(b"", status=503))}) as origin:
        assert (await get(box, f"{path}?token={good}", host=host)).body == b"secret"
        await refused(box, path, host)
        assert len(origin.requests) == 1, "a bad token doesn't even cause a refresh"
        assert (await get(box, f"{path}?token={good}", host=host)).body == b"secret"
        await until(lambda: len(origin.requests) == 2)
        await refused(box, path, host)
    # With the origin gone, too.
    assert (await get(box, f"{path}?token={good}", host=host)).body == b"secret"
    await refused(box, path, host)
    await refused(box, path, host, fields={"If-None-Match": '"v"'})
    await refused(box, path, host, fields={"Cache-Control": "only-if-cached, max-stale"})


@pytest.mark.parametrize("host", BOTH)
@scenario
async def test_an_answer_from_a_validation_is_no_bypass(box: Box, host: str) -> None:
    path, good = f"/validated-{host}/a.ts", token(path=f"/validated-{host}/")
    file = File(b"secret", etag='"v"', cache_control="no-cache")
    async with box.origin({path.encode(): file}):
        for _ in range(2):
            assert (await get(box, f"{path}?token={good}", host=host)).body == b"secret"
            await refused(box, path, host)
            await refused(box, path, host, fields={"If-None-Match": '"v"'})
            await refused(box, path, host, fields={"If-Range": '"v"', "Range": "bytes=0-1"})


@scenario
async def test_negative_and_redirected_answers_are_judged_too(box: Box) -> None:
    """A stored 404 says what is not there, a stored redirect where it is."""
    good = token(path="/none/")
    scripts = {
        b"/none/404": reply(b"secret", status=404, fields=FRESH),
        b"/none/302": raw(
            b"HTTP/1.1 302 F\r\nLocation: /secret\r\nCache-Control: max-age=60\r\nContent-Length: 0\r\n\r\n", "keep"
        ),
    }
    async with box.origin(scripts):
        for status in (404, 302):
            for _ in range(2):
                assert (await get(box, f"/none/{status}?token={good}", host=GENERIC_JWT)).status == status
            await refused(box, f"/none/{status}", GENERIC_JWT)


@scenario
async def test_bug_a_token_for_reading_was_one_for_writing(box: Box) -> None:
    """CTA-5007 catm: the methods that a token is for weren't compared with the request's, and a grant knew none."""
    now_s = int(time.time())

    def token_for(*methods: str) -> str:
        claims = {4: now_s + 600, 6: now_s - 1, 313: list(methods)}
        return cat(claims=claims, protected={1: -7, 4: b"portal"}).decode()

    async def status(method: str, query: str) -> int:
        sent = {} if method in ("GET", "HEAD") else {"Content-Length": "0"}
        return (await get(box, f"/catm?token={query}", sent, host=CAT, method=method)).status

    reading, writing, both = token_for("GET"), token_for("PUT"), token_for("GET", "PUT")
    async with box.origin({b"/catm": reply(b"", fields=FRESH)}) as origin:
        for _ in range(2):
            assert [await status(each, reading) for each in ("GET", "HEAD", "PUT", "DELETE")] == [200, 200, 403, 403]
            assert [await status(each, writing) for each in ("PUT", "GET", "HEAD", "POST")] == [200, 403, 403, 403]
            assert [await status(each, both) for each in ("PUT", "GET", "DELETE")] == [200, 200, 403]
    assert {request.method for request in origin.requests} == {b"GET", b"PUT"}


@scenario
async def test_unkeyed_spellings_of_the_credential_are_no_credential(box: Box) -> None:
    """What the key leaves out and what is judged are the same bytes, however the query is written."""
    good = token(path="/spelled/")
    async with box.origin({b"/spelled/a.ts": reply(b"secret", fields=FRESH)}):
        assert (await get(box, f"/spelled/a.ts?token={good}", host=JWT)).body == b"secret"
        for query in (
            f"token={good}&token=", f"token=&token={good}", f"token={good};x", f"TOKEN={good}", f"tok%65n={good}",
            f"token[]={good}", f"x=1;token={good}", f"?token={good}", f"token=={good}", f"token%3d{good}",
            f"token={good}#", f"token={good}%00", f"token=%20{good}", f"token={good}%20", f"token={good}+",
            f"token=Bearer%20{good}", f"+token={good}", f" token={good}", f"token={good[:-1]}", f"token={good}.",
            f"token={good}={'x' * 10}", f"token={good.replace('.', '..')}", f"token\t={good}",
        ):  # fmt: skip
            answer = await get(box, f"/spelled/a.ts?{query}", host=JWT)
            assert answer.status in (0, 400, 403), (query, answer)
            assert b"secret" not in answer.body
        # Behind and before others, and with CMCD, which isn't in the key either, it is one.
        for query in (f"CMCD=sid&token={good}", f"token={good}&CMCD=sid", f"&token={good}", f"token={good}&"):
            answer = await get(box, f"/spelled/a.ts?{query}", host=JWT)
            assert answer.status in (200, 404), (query, answer)


def test_a_warm_disk_is_no_bypass(tmp_path: Path) -> None:
    """After a restart the object comes from the disk, and nobody has a grant any more."""
    body = noise(300_000)

    def of(box: Box) -> int:
        return int(box.stats()["disk_objects"])

    @scenario
    async def fill(box: Box) -> None:
        async with box.origin({b"/disk/a.ts": reply(body, fields=FRESH)}):
            assert (await get(box, f"/disk/a.ts?token={good}", host=JWT)).body == body
            await until(lambda: of(box) == 1, "it is on the disk")

    @scenario
    async def attack(box: Box) -> None:
        await refused(box, "/disk/a.ts", JWT)
        await refused(box, "/disk/a.ts", JWT, fields={"Range": "bytes=0-1"})
        assert (await get(box, f"/disk/a.ts?token={good}", host=JWT)).body == body
        await refused(box, "/disk/a.ts", JWT)

    good = token(path="/disk/")
    box = Box(tmp_path, cache={"disk": {"size": "64MiB"}})
    with_key(box.state)
    credential = {"parameters": ["token"], "covers": "directory", "verify": {**RULE, "path_claim": "path"}}
    row = {"from": [f"http://127.0.0.1:{box.ports[0]}"], "hosts": [JWT], "credential": credential}
    box.policy["origins"]["jwt"] = row
    with box:
        fill(box)
    box.addresses.clear()
    with box:
        attack(box)


# -- nginx as the judge of its own links -------------------------------------------------------------------------------

SECRET = "a secret of 20 bytes"


@pytest.fixture
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[int]:
    """Answers 204 to what its secure_link module takes for good, 410 to what has expired, 403 to the rest."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    port = free_port()
    (tmp_path / "nginx.conf").write_text(f"""
daemon off; master_process off; worker_processes 1; pid {tmp_path}/nginx.pid; error_log stderr error;
events {{ }}
http {{
  access_log off; client_body_temp_path {tmp_path}; proxy_temp_path {tmp_path}; fastcgi_temp_path {tmp_path};
  uwsgi_temp_path {tmp_path}; scgi_temp_path {tmp_path}; merge_slashes off;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      secure_link $arg_md5,$arg_expires;
      secure_link_md5 "$secure_link_expires$uri {SECRET}";
      if ($secure_link = "") {{ return 403; }}
      if ($secure_link = "0") {{ return 410; }}
      return 204;
    }}
  }}
}}
""")
    running = subprocess.Popen(
        ["nginx", "-c", f"{tmp_path}/nginx.conf", "-p", str(tmp_path)], stderr=subprocess.DEVNULL
    )

    def listens() -> bool:
        import socket

        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listens, what="nginx listens")
        yield port
    finally:
        running.terminate()
        running.wait(10)


def link(path: str, expires: object, *, uri: str = "", secret: str = SECRET) -> str:
    import base64
    import hashlib

    digest = hashlib.md5(f"{expires}{uri or path} {secret}".encode(), usedforsecurity=False).digest()
    return f"{path}?md5={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}&expires={expires}"


def test_no_link_is_good_here_that_nginx_refuses(tmp_path: Path, nginx: int, origin: RecordingOrigin) -> None:
    """The same URLs to nginx's own module and to the box; where they differ, the box is the stricter one."""
    now_s = int(time.time())
    good = link("/s/a.mp4", now_s + 600)
    path, _, query = good.partition("?")
    md5, expires = (part.partition("=")[2] for part in query.split("&"))
    both_take = [
        good, link("/s/b%20c.mp4", now_s + 600, uri="/s/b c.mp4"), link("/s/%61.mp4", now_s + 600, uri="/s/a.mp4"),
        f"{path}?expires={expires}&md5={md5}", f"{path}?x=1&md5={md5}&expires={expires}",
    ]  # fmt: skip
    refused = [
        link("/s/a.mp4", now_s - 10), link("/s/a.mp4", 0), link("/s/a.mp4", -1), link("/s/a.mp4", "x"),
        link("/s/a.mp4", now_s + 600, secret="another secret, 20 b"), good.replace("a.mp4", "b.mp4"), path,
        f"{path}?md5={md5}", f"{path}?expires={expires}", f"{path}?md5=&expires={expires}",
        f"{path}?md5={md5}&expires={int(expires) + 1}", f"{path}?md5={md5[:-1]}&expires={expires}",
        f"{path}?md5={md5}A&expires={expires}", f"{path}?md5={md5.swapcase()}&expires={expires}",
        f"{path}?md5={urllib.parse.quote(md5 + '==')}x&expires={expires}", f"{path}?md5={md5}&expires=+{expires}",
        f"{path}?md5={md5}&expires={expires}x", f"{path}?md5={md5}&expires=%31{expires[1:]}", f"/x/..{good}",
    ]  # fmt: skip
    statuses = {}
    policy = policy_for(origin.url)
    policy["origins"]["link"] = {
        "from": [origin.url], "hosts": ["link.example"], "profile": "generic",
        "credential": {
            "parameters": ["md5", "expires"],
            "verify": {"scheme": "secure-link", "keys": ["link"], "signed": "{expires}{uri} {secret}", "leeway": "0s"},
        },
    }  # fmt: skip
    box = RunningBox(tmp_path / "box", policy)
    (box.state / "credentials").mkdir(parents=True)
    (box.state / "credentials" / "link.secret").write_text(SECRET + "\n")
    with box:
        for target in dict.fromkeys((*both_take, *refused)):
            theirs = ask_directly(nginx, target)
            ours = box.get(target, host="link.example").status
            statuses[target] = (theirs, ours)
            assert theirs == 204 or ours == 403, (target, theirs, ours)
    assert {statuses[target] for target in both_take} == {(204, 200)}
    assert {ours for _, ours in (statuses[target] for target in refused)} == {403}


def ask_directly(port: int, target: str) -> int:
    import socket

    with socket.create_connection(("127.0.0.1", port), 10) as connected:
        connected.sendall(f"GET {target} HTTP/1.1\r\nHost: link.example\r\nConnection: close\r\n\r\n".encode())
        return int(connected.makefile("rb").readline().split()[1])
