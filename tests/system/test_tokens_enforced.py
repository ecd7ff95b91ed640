"""Viewers' credentials, enforced: a warm object is no way around them, one body is fetched for 500 tokens, a yes ends.

The box verifies tokens that the tests sign, or asks an origin that the tests run.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box import Box, Viewer, get, scenario, until
from hostile_origin import Request, reply
from origin_scripts import by_request, fields, gated, noise

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "protocols"))

from minting import EC_KEY, ED_KEY, jwt, pem

JWT, OBJECT, HEADER, ASK, LAST, COOKIE = (
    f"{name}.example" for name in ("jwt", "object", "header", "ask", "last", "cookie")
)
VERIFY = {"scheme": "jwt", "algorithm": "ES256", "keys": ["portal"], "issuer": "portal", "audience": "box"}


def origin_of(port: int, host: str, **credential: Any) -> dict[str, Any]:
    return {"from": [f"http://127.0.0.1:{port}"], "hosts": [host], "credential": credential}


def protected(box: Box) -> dict[str, Any]:
    port = box.ports[0]
    by_path = {**VERIFY, "path_claim": "path", "leeway": "0s"}
    rows = {
        "jwt": origin_of(port, JWT, parameters=["token"], covers="directory", verify=by_path),
        "generic-jwt": {
            **origin_of(port, "generic-jwt.example", parameters=["token"], verify=by_path), "profile": "generic",
        },
        "object": origin_of(port, OBJECT, parameters=["token"], verify=VERIFY),
        "header": origin_of(port, HEADER, headers=["Authorization"], covers="directory", verify=VERIFY),
        "ask": {**origin_of(port, ASK, parameters=["s"], ask="origin", authorise_for="1s"), "profile": "generic"},
        "last": origin_of(port, LAST, cookies=["s"], ask="origin", authorise_for="1s", when_unreachable="last-yes"),
        "cookie": origin_of(port, COOKIE, cookies=["t"], refusal=401, covers="directory", verify=VERIFY),
    }
    return dict(json.loads(json.dumps(rows)))  # YAML would write what is shared as an alias


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("tokens"))
    folder = box.state / "credentials"
    folder.mkdir(parents=True)
    (folder / "portal.pem").write_bytes(pem(EC_KEY))
    box.policy["origins"].update(protected(box))
    with box:
        yield box
        box.assert_sound()


def token(**claims: Any) -> str:
    now_s = int(time.time())
    return jwt("ES256", {"kid": "portal"}, **{"exp": now_s + 600, "iat": now_s - 1, **claims}).decode()


FRESH = fields(cache_control="max-age=60", etag='"v"')


@scenario
async def test_500_viewers_with_500_tokens_cost_one_fetch_and_hits_stay_hits(box: Box) -> None:
    body = noise(300_000)
    tokens = [token(sub=f"viewer-{n}", path="/live/") for n in range(500)]
    async with box.origin({b"/live/a.ts": reply(body, fields=FRESH)}) as origin:
        answers = await asyncio.gather(*(get(box, f"/live/a.ts?token={each}", host=JWT) for each in tokens))
        assert all((answer.status, answer.body) == (200, body) for answer in answers)
        assert len(origin.requests) == 1
        assert origin.requests[0].target.startswith(b"/live/a.ts?token="), "the leader's own goes up with his request"
        async with box.growth() as grown:
            again = await asyncio.gather(*(get(box, f"/live/a.ts?token={each}", host=JWT) for each in tokens))
        assert all("hit" in answer.cache for answer in again)
        assert grown["hits"] == 500
        assert grown["exchanges"] == grown["authorisations"] == 0
        async with box.growth() as grown:
            assert (await get(box, f"/live/a.ts?token={token(sub='new', path='/live/')}", host=JWT)).cache.keys() == {
                "hit", "ttl",
            }  # fmt: skip
        assert (grown["hits"], grown["misses"], grown["authorisations"]) == (1, 0, 1)
    assert len(origin.requests) == 1


@scenario
async def test_a_warm_object_is_no_bypass(box: Box) -> None:
    good = token(path="/warm/")
    async with box.origin({b"/warm/a.ts": reply(b"secret", fields=FRESH)}) as origin:
        assert (await get(box, f"/warm/a.ts?token={good}", host=JWT)).body == b"secret"
        for query in (
            "", "?token=", "?token=x", "?token=" + token(path="/other/"), "?token=" + token(path="/warm/", exp=1),
            "?token=" + token(path="/warm/", iss="evil"), f"?token={good}x", f"?token={good}&token={good}",
            f"?Token={good}", f"?token={good.replace('.', '%2E', 1)}x", "?token=" + "x" * 5000,
        ):  # fmt: skip
            for method in ("GET", "HEAD"):
                for sent in ({}, {"Range": "bytes=0-1"}, {"If-None-Match": '"v"'}, {"Cookie": f"token={good}"}):
                    answer = await get(box, f"/warm/a.ts{query}", sent, host=JWT, method=method)
                    assert answer.status == 403, (query, method, sent, answer)
                    assert b"secret" not in answer.body
                    assert answer["Cache-Control"] == "no-store"
                    assert "ETag" not in answer
        for sent, status in (({"Range": "bytes=0-1"}, 206), ({"If-None-Match": '"v"'}, 304), ({}, 200)):
            assert (await get(box, f"/warm/a.ts?token={good}", sent, host=JWT)).status == status
        assert (await get(box, f"/warm/a.ts?token={good}", host=JWT, method="HEAD")).status == 200
    assert len(origin.requests) == 1


@scenario
async def test_each_request_of_a_pipeline_is_judged(box: Box) -> None:
    good = token(path="/pipe/")
    async with box.origin({b"/pipe/a.ts": reply(b"secret", fields=FRESH)}):
        viewer = await Viewer.connect(box)
        for query in (good, "x", good, "", good):
            viewer.ask(f"/pipe/a.ts?token={query}", host=JWT)
        statuses = []
        for _ in range(5):
            answer = await viewer.head()
            while await viewer.more():
                pass
            statuses.append(answer.status)
    assert statuses == [200, 403, 200, 403, 200]


@pytest.mark.parametrize(
    "path",
    ["/free/../paid/a.ts", "/free/%2e%2e/paid/a.ts", "/free/..%2fpaid/a.ts", "//paid/a.ts", "/free/..;/paid/a.ts",
     "/free/%5c..%5cpaid/a.ts", "/paid/a.ts"],
)  # fmt: skip
@scenario
async def test_no_path_leads_out_of_the_scope(box: Box, path: str) -> None:
    async with box.origin({}) as origin:
        assert (await get(box, f"{path}?token={token(path='/free/')}", host=JWT)).status == 403
    assert origin.requests == []


@pytest.mark.parametrize("name", ["..%2fpaid%2fa.ts", "%2e%2e%2fpaid%2fa.ts", "..", "%2e%2e", "..%5cpaid", "..\\paid",
                                  "..;x", "a%00.ts", "%252e%252e%252fpaid"])  # fmt: skip
@scenario
async def test_bug_a_yes_for_a_directory_was_one_for_what_an_origin_decodes_out_of_it(box: Box, name: str) -> None:
    """After one verified request in /free/, the worker let `/free/..%2fpaid%2fa.ts` through by its directory alone."""
    good = token(path="/free/")
    async with box.origin({b"/free/a.ts": reply(b"free", fields=FRESH)}) as origin:
        assert (await get(box, f"/free/a.ts?token={good}", host=JWT)).status == 200
        origin.requests.clear()
        answer = await get(box, f"/free/{name}?token={good}", host=JWT)
        assert answer.status in (400, 403)
        assert origin.requests == []
        assert "hit" in (await get(box, f"/free/a.ts?token={good}", host=JWT)).cache


@scenario
async def test_a_yes_for_an_object_is_for_that_object_and_query(box: Box) -> None:
    """`covers: object`: each is judged, also for a token that is for all; a scope of one object is one anywhere."""
    one, everything = token(path="/one/a.ts"), token()
    scripts = {path: by_request(lambda request: reply(request.target.split(b"?")[0], fields=FRESH))
               for path in (b"/one/a.ts", b"/one/b.ts", b"/x", b"/y")}  # fmt: skip
    async with box.origin(scripts):
        assert (await get(box, f"/one/a.ts?token={one}", host=JWT)).status == 200
        assert (await get(box, f"/one/b.ts?token={one}", host=JWT)).status == 403
        async with box.growth() as grown:
            for target in ("/x", "/y", "/x?a=1", "/x"):
                joint = "&" if "?" in target else "?"
                assert (await get(box, f"{target}{joint}token={everything}", host=OBJECT)).status == 200
    assert grown["authorisations"] == 3


@scenario
async def test_a_token_that_ends_is_refused_from_then_on(box: Box) -> None:
    short = token(path="/ends/", exp=int(time.time()) + 3)
    async with box.origin({b"/ends/a.ts": reply(b"secret", fields=FRESH)}):
        assert (await get(box, f"/ends/a.ts?token={short}", host=JWT)).status == 200
        while (answer := await get(box, f"/ends/a.ts?token={short}", host=JWT)).status == 200:
            await asyncio.sleep(0.05)
    assert answer.status == 403
    assert time.time() >= int(time.time()) - 1


@scenario
async def test_authorization_that_is_judged_makes_no_answer_private(box: Box) -> None:
    async with box.origin({b"/h/a.ts": reply(b"body", fields=(*FRESH, (b"Vary", b"Authorization")))}) as origin:
        for n in range(3):
            answer = await get(box, "/h/a.ts", {"Authorization": f"Bearer {token(sub=str(n))}"}, host=HEADER)
            assert (answer.status, answer.body) == (200, b"body")
        assert (await get(box, "/h/a.ts", {"Authorization": "Bearer x"}, host=HEADER)).status == 403
        assert (await get(box, "/h/a.ts", host=HEADER)).status == 403
    assert len(origin.requests) == 1
    assert (origin.requests[0].field(b"Authorization") or b"").startswith(b"Bearer ey")


@scenario
async def test_of_a_cookie_the_credential_alone_goes_up(box: Box) -> None:
    good = token()
    async with box.origin({b"/c/a.ts": reply(b"body", fields=FRESH)}) as origin:
        answer = await get(box, "/c/a.ts", {"Cookie": f"session=private; t={good}; x=y"}, host=COOKIE)
        assert answer.status == 200
        assert "hit" in (await get(box, "/c/a.ts", {"Cookie": f"t={token(sub='b')}"}, host=COOKIE)).cache
        refused = await get(box, "/c/a.ts", {"Cookie": f"t={good}; t=x"}, host=COOKIE)
    assert origin.requests[0].field(b"Cookie") == b"t=" + good.encode()
    assert (refused.status, refused["WWW-Authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("body", ["Content-Length: 30", "Transfer-Encoding: chunked"])
@scenario
async def test_a_refused_body_is_no_next_request(box: Box, body: str) -> None:
    """With verify the box decides on every method; what follows a refused head is thrown away with the connection."""
    good = token(path="/up/")
    name, _, value = body.partition(": ")
    inner = b"GET /up/a.ts?token=%b HTTP/1.1\r\nHost: generic-jwt.example\r\n\r\n" % good.encode()
    async with box.origin({b"/up/a.ts": reply(b"secret", fields=FRESH)}) as origin:
        for query in ("x", "x", ""):
            viewer = await Viewer.connect(box)
            viewer.ask(f"/up/a.ts?token={query}", {name: value}, host="generic-jwt.example", method="POST")
            viewer.writer.write(inner)
            answer = await viewer.head()
            assert (answer.status, answer["Connection"]) == (403, "close")
            while await viewer.more():
                pass
            assert await viewer.reader.read() == b""
        assert origin.requests == []
        assert (await get(box, "/up/a.ts", host="generic-jwt.example", method="OPTIONS")).status == 200
        viewer = await Viewer.connect(box)
        viewer.ask(f"/up/a.ts?token={good}", {"Content-Length": "4"}, host="generic-jwt.example", method="POST")
        viewer.writer.write(b"body")
        assert (await viewer.head()).status == 200
    assert [request.method for request in origin.requests] == [b"OPTIONS", b"POST"]


# -- asking the origin -------------------------------------------------------------------------------------------------


def portal(allowed: set[bytes], path: bytes = b"/p") -> Any:
    """Answers 200 to the sessions in `allowed`, in the query or a cookie, and 403 to others."""

    def choose(request: Request) -> Any:
        credential = request.field(b"Cookie") or request.target.partition(b"?")[2]
        is_allowed = credential.removeprefix(b"s=") in allowed
        return reply(b"secret", fields=FRESH) if is_allowed else reply(b"go away", status=403)

    return {path: by_request(choose)}


@scenario
async def test_the_origin_is_asked_once_and_one_body_is_fetched(box: Box) -> None:
    allowed = {b"%d" % n for n in range(100)}
    async with box.origin(portal(allowed)) as origin:
        answers = await asyncio.gather(*(get(box, f"/p?s={n}", host=ASK) for n in range(110)))
        assert [answer.status for answer in answers] == [200] * 100 + [403] * 10
        methods = [request.method for request in origin.requests]
    assert methods.count(b"GET") == 1
    assert methods.count(b"HEAD") == 110


@scenario
async def test_a_revoked_session_is_refused_within_the_time(box: Box) -> None:
    allowed = {b"s1", b"s2"}
    async with box.origin(portal(allowed, b"/revoked")):
        assert (await get(box, "/revoked?s=s1", host=ASK)).status == 200
        allowed.discard(b"s1")
        revoked = time.monotonic()
        while (await get(box, "/revoked?s=s1", host=ASK)).status == 200:
            assert time.monotonic() - revoked < 5
            await asyncio.sleep(0.02)
        assert (await get(box, "/revoked?s=s2", host=ASK)).status == 200, "somebody else's holds"


@scenario
async def test_when_the_origin_cannot_be_asked(box: Box) -> None:
    """`refuse`: 503, warm or not. `last-yes`: whoever was let in before, and nobody else."""
    allowed = {b"a", b"b"}
    async with box.origin(portal(allowed, b"/away")):
        assert (await get(box, "/away?s=a", host=ASK)).status == 200
        assert (await get(box, "/away", {"Cookie": "s=a"}, host=LAST)).status == 200
        assert (await get(box, "/away", {"Cookie": "s=x"}, host=LAST)).status == 403

    async def has_ended() -> bool:
        return (await get(box, "/away?s=a", host=ASK)).status == 503

    ends = time.monotonic() + 10
    while not await has_ended():
        assert time.monotonic() < ends
        await asyncio.sleep(0.05)
    for _ in range(3):
        answer = await get(box, "/away", {"Cookie": "s=a"}, host=LAST)
        assert (answer.status, answer.body) == (200, b"secret")
    assert (await get(box, "/away", {"Cookie": "s=b"}, host=LAST)).status == 503


@scenario
async def test_what_is_not_there_is_told_as_the_origin_tells_it(box: Box) -> None:
    async with box.origin({}):
        assert (await get(box, "/nothing?s=a", host=ASK)).status == 404


# -- operating it ------------------------------------------------------------------------------------------------------


@scenario
async def test_refusals_are_counted_and_told_without_the_token(box: Box) -> None:
    bad = token(path="/told/", iss="mallory")
    async with box.growth() as grown:
        await get(box, f"/told/a.ts?token={bad}", host=JWT)
        await get(box, f"/told/a.ts?token={bad}", host=JWT)
    assert (grown["refused_credential"], grown["authorisations"], grown["refused"]) == (2, 1, 2)
    events = box.control("events")["events"]
    assert any(event["kind"] == "credential-refused" and "issuer" in event["what"] for event in events)
    logs = [each.read_text() for each in (box.state / "logs").rglob("*") if each.is_file()]
    said = box.output + str(events) + "".join(logs)
    assert bad not in said
    assert bad.split(".")[2] not in said


def test_a_key_that_changes_ends_what_was_allowed_by_it(tmp_path: Path) -> None:
    @scenario
    async def run(box: Box) -> None:
        folder = box.state / "credentials"
        good = token(path="/k/")
        async with box.origin({b"/k/a.ts": reply(b"secret", fields=FRESH)}):
            assert (await get(box, f"/k/a.ts?token={good}", host=JWT)).status == 200
            (folder / "portal.pem").write_bytes(pem(ED_KEY))
            assert "refused" in box.reload()
            assert (await get(box, f"/k/a.ts?token={good}", host=JWT)).status == 200, "the running policy stays"
            from cryptography.hazmat.primitives.asymmetric import ec

            (folder / "portal.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
            assert "taken over" in box.reload()
            await until(lambda: True)
            assert (await get(box, f"/k/a.ts?token={good}", host=JWT)).status == 403

    box = Box(tmp_path)
    (box.state / "credentials").mkdir(parents=True)
    (box.state / "credentials" / "portal.pem").write_bytes(pem(EC_KEY))
    box.policy["origins"].update(protected(box))
    with box:
        run(box)


def test_a_question_that_a_reload_overtook_grants_nothing(tmp_path: Path) -> None:
    """The origin's yes came after the policy had changed to verification: it was written down under the new rule."""

    @scenario
    async def run(box: Box) -> None:
        gate = asyncio.Event()
        yes = reply(b"secret", fields=FRESH)
        async with box.origin({b"/late": gated(gate, yes)}) as origin:
            waiting = asyncio.ensure_future(get(box, "/late?s=a", host=ASK))
            await until(lambda: origin.requests)
            changed = {**box.policy["origins"]["ask"], "credential": {"parameters": ["s"], "verify": dict(VERIFY)}}
            policy = {**box.policy, "origins": {"ask": json.loads(json.dumps(changed))}}
            assert "taken over" in await asyncio.to_thread(lambda: box.reload(policy=policy))
            gate.set()
            assert (await waiting).status == 403
            assert (await get(box, "/late?s=a", host=ASK)).status == 403

    box = Box(tmp_path)
    (box.state / "credentials").mkdir(parents=True)
    (box.state / "credentials" / "portal.pem").write_bytes(pem(EC_KEY))
    box.policy["origins"].update(protected(box))
    with box:
        run(box)


def test_a_policy_without_its_key_is_not_started(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.policy["origins"].update(protected(box))
    box.spawn()
    try:
        assert box.exit_code() == 1
        assert "portal.pem, .jwk, .secret: none of them is there" in box.output
        assert "Traceback" not in box.output
    finally:
        box.kill()
