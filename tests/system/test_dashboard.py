"""The dashboard's files and API over real HTTP: fields, hosts, other sites, token, paging, hostile names, crowds."""

from __future__ import annotations

import http.client
import json
import os
import re
import stat
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from memory_box import LoopThread, MemoryBox, stored
from recording_origin import RecordingOrigin
from running_box import HOST, PROJECT, RunningBox, address_of, policy_for, wait_for

from accelerator.services.listeners.admin_token import TokenError, load_admin_token
from accelerator.web.admin import start_admin, stop_admin
from accelerator.web.guard import FAILURES_MAX
from accelerator.web.summary import language_of, page_of

TOKEN = "correct-horse-battery-staple"
STATIC = PROJECT / "accelerator" / "web" / "static"
HOSTILE = [
    "http://a.example/<img src=x onerror=alert(1)>",
    "http://a.example/\u202egnp.exe",
    "http://a.example/" + "x" * 8192,
    "http://a.example/%3Cscript%3E</script><svg/onload=alert(1)>",
]


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.fields = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        assert self.fields["content-type"] == "application/json"
        return json.loads(self.body)


class Dashboard:
    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def ask(self, path: str, method: str = "GET", body: Any = None, **fields: str) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        data = json.dumps(body).encode() if body is not None else None
        if data is not None:
            names.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body=data, headers=names)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def change(self, path: str, body: Any, token: str = TOKEN, **fields: str) -> Answer:
        return self.ask(path, "POST", body, Authorization=f"Bearer {token}", **fields)


class MemoryDashboard(Dashboard):
    def __init__(self, thread: LoopThread, **settings: Any) -> None:
        self.box = MemoryBox()
        self.audited: list[tuple[Any, ...]] = []

        async def start() -> tuple[Any, int]:
            return await start_admin(
                self.box, "127.0.0.1", 0, audit=lambda *what: self.audited.append(what),
                **{"token": TOKEN, **settings},
            )  # fmt: skip

        self.runner, port = thread.run(start())
        super().__init__("127.0.0.1", port)


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    with LoopThread() as running:
        yield running


@pytest.fixture
def board(thread: LoopThread) -> Iterator[MemoryDashboard]:
    running = MemoryDashboard(thread)
    yield running
    thread.run(stop_admin(running.runner))


@pytest.fixture(scope="module")
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_page_and_its_files_come_from_here_only(board: MemoryDashboard) -> None:
    page = board.ask("/")
    assert (page.status, page.fields["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.fields["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert page.fields["x-content-type-options"] == "nosniff"
    assert page.fields["referrer-policy"] == "no-referrer"
    assert page.fields["cross-origin-opener-policy"] == "same-origin"
    assert page.fields["cross-origin-resource-policy"] == "same-origin"
    assert page.fields["cache-control"] == "no-store"
    names = re.findall(r'(?:src|href)="([^"#]+)"', page.body.decode())
    assert len(names) >= 2
    assert all(name.startswith("/static/") for name in names)
    for name in [*names, *(f"/static/{each.name}" for each in STATIC.iterdir())]:
        answer = board.ask(name)
        assert answer.status == 200, name
        assert answer.fields["cache-control"] == "no-cache"
        assert answer.fields["x-content-type-options"] == "nosniff"
        again = board.ask(name, If_None_Match=f'W/"other", {answer.fields["etag"]}')
        assert (again.status, again.body) == (304, b"")
        assert board.ask(name, If_None_Match='"other"').status == 200
        assert board.ask(name, "HEAD").body == b""
    for path in ("/static/", "/static/../admin.py", "/static/%2e%2e/admin.py", "/static/app.js/", "/static//app.js"):
        assert board.ask(path).status == 404, path
    assert board.ask("/", "POST").status == 405


def test_files_name_no_other_host_and_hold_no_inline_script() -> None:
    for path in STATIC.iterdir():
        text = path.read_text()
        found = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"']*", text))
        assert found <= {"http://www.w3.org/2000/svg"}, path  # SVG's name space is no address to fetch
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert forbidden not in text, path
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    scripts = re.findall(r"<script(.*?)>(.*?)</script>", page, re.S)
    assert scripts == [(' src="/static/theme.js"', ""), (' type="module" src="/static/app.js"', "")]


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"), ("fr", "fr"), ("fr-CA,fr;q=0.9,en;q=0.8", "fr"), ("en-GB, fr;q=0.9", "en"), ("de, fr;q=0.1", "fr"),
        ("de", "en"), ("*", "en"), ("fr;q=0, en;q=0.1", "en"), ("fr;q=x", "en"), ("<script>", "en"), ("FR", "fr"),
    ],
)  # fmt: skip
def test_the_language_that_the_browser_asks_for(accepted: str, language: str) -> None:
    assert language_of(accepted) == language


def test_without_scripts_the_page_has_the_figures(board: MemoryDashboard) -> None:
    board.box.origin_names.append("<img src=x onerror=alert(1)>")
    english = board.ask("/", Accept_Language="en").body.decode()
    french = board.ask("/", Accept_Language="fr").body.decode()
    assert '<html lang="en"' in english
    assert '<html lang="fr"' in french
    for page, memory in ((english, "3.0 MiB / 512.0 MiB"), (french, "3,0 Mo / 512,0 Mo")):
        assert memory in page
        assert "{{" not in page
    live = {**board.box.live()}
    live["origins"] = [{"name": "<img src=x onerror=alert(1)>", "level": "bad"}]
    texts = json.loads((STATIC / "en.json").read_text())
    page = page_of("{{summary}}", "en", texts, live)
    assert "<img" not in page
    assert "&lt;img" in page


# -- hosts and other sites ---------------------------------------------------------------------------------------------


def test_no_page_of_another_site_reads_or_changes(board: MemoryDashboard) -> None:
    own = f"127.0.0.1:{board.port}"
    assert board.ask("/api/live", Host="evil.example").status == 421
    assert board.ask("/", Host="evil.example").status == 421
    assert board.ask("/api/live", Sec_Fetch_Site="same-origin", Origin=f"http://{own}", Host=own).status == 200
    assert board.ask("/api/live", Sec_Fetch_Site="none").status == 200
    for fields in (
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Origin": "http://evil.example"},
        {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
    ):  # fmt: skip
        answer = board.ask("/api/live", **fields)
        assert (answer.status, answer.json["error"]["kind"]) == (403, "other-site"), fields
        assert board.change("/api/purge", {"origin": "media"}, **fields).status == 403
    assert len(board.box.objects) == 6
    plain = board.change("/api/purge", {"origin": "media"}, Content_Type="text/plain")
    assert plain.status == 415
    for answer in (board.ask("/api/live"), board.ask("/api/live", "OPTIONS", Origin="http://evil.example")):
        assert not [name for name in answer.fields if name.startswith("access-control")]


# -- the token ---------------------------------------------------------------------------------------------------------


def test_changes_need_the_token(board: MemoryDashboard) -> None:
    assert board.ask("/api/purge", "POST", {"origin": "media"}).status == 401
    wrong = board.change("/api/purge", {"origin": "media"}, "wrong-token-wrong-token")
    assert (wrong.status, wrong.json["error"]["kind"]) == (401, "token-wrong")
    assert wrong.fields["www-authenticate"].startswith("Bearer")
    assert board.ask("/api/purge").status == 405, "GET changes nothing"
    assert len(board.box.objects) == 6
    assert board.change("/api/token", {}).json == {"ok": True}
    assert board.change("/api/purge", {"origin": "library"}).json == {"purged": 1}
    assert board.change("/api/purge", {"id": "5.ts"}).json["purged"] == 1
    assert board.change("/api/purge", {"url": "http://a.example/live/1.ts?token=hush"}).json == {"purged": 0}
    assert board.change("/api/policy/rollback", {"to": 3}).json == {"number": 3}
    assert [what[0] for what in board.audited] == ["purge", "purge", "purge", "policy rollback"]
    assert board.box.refusals == [("admin", "wrong token")]


def test_bad_changes_are_refused_and_change_nothing(board: MemoryDashboard) -> None:
    for body in (
        {}, {"url": 5}, {"url": "x", "origin": "y"}, {"to": 1}, {"origin": "a\u0000b"}, {"id": 5},
        {"id": "x", "url": "y"},
    ):  # fmt: skip
        assert board.change("/api/purge", body).status == 400, body
    assert board.change("/api/purge", {"origin": "nowhere"}).status == 404
    assert board.change("/api/purge", [1]).status == 400
    assert board.change("/api/purge", {"url": "x" * 20_000}).status == 413
    assert board.change("/api/policy/rollback", {"to": "1"}).status == 400
    connection = http.client.HTTPConnection("127.0.0.1", board.port, timeout=10)
    for data in (b"{", b"\xff", b"[" * 10_000):
        fields = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        connection.request("POST", "/api/purge", body=data, headers=fields)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 400
    connection.close()
    assert board.change("/api/purge", {"url": "http://a.example/fault"}).body == b"RuntimeError\n"
    assert len(board.box.objects) == 6


def test_guessing_tokens_ends_after_a_few(board: MemoryDashboard) -> None:
    for _ in range(FAILURES_MAX):
        assert board.change("/api/token", {}, "wrong-token-wrong-token").status == 401
    answer = board.change("/api/token", {})
    assert (answer.status, answer.fields["retry-after"]) == (429, "60"), "the right one waits too"
    metrics = board.ask("/metrics").body.decode()
    assert f"accelerator_admin_token_refused_total {FAILURES_MAX}.0" in metrics
    assert "accelerator_admin_token_waits_total 1.0" in metrics


def test_a_policy_may_want_the_token_for_reading_too(thread: LoopThread) -> None:
    board = MemoryDashboard(thread, reads_freely=False)
    page = board.ask("/")
    assert page.status == 200
    assert b"lyon" not in page.body
    assert board.ask("/healthz").status == 200
    assert board.ask("/api/token").json == {"reads_freely": False}
    for path in ("/api/live", "/api/objects", "/api/events", "/api/policy", "/api/status", "/metrics"):
        answer = board.ask(path)
        assert answer.status == 401, path
        assert b"media" not in answer.body
        assert board.ask(path, Authorization=f"Bearer {TOKEN}").status == 200, path
    thread.run(stop_admin(board.runner))


def test_without_a_token_nothing_can_be_changed(thread: LoopThread) -> None:
    board = MemoryDashboard(thread, token=None)
    assert board.change("/api/purge", {"origin": "media"}, "").status == 503
    assert board.ask("/api/live").status == 200
    thread.run(stop_admin(board.runner))


def test_the_token_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    made = load_admin_token(tmp_path / "none", tmp_path)
    assert len(made.text) >= 43
    assert made.path == tmp_path / "credentials" / "admin.token"
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert made.text not in repr(made)
    assert load_admin_token(None, tmp_path) == made
    assert os.listdir(made.path.parent) == ["admin.token"]
    given = tmp_path / "given"
    given.mkdir()
    (given / "admin.token").write_text(TOKEN + "\n")
    assert load_admin_token(given, tmp_path).text == TOKEN
    for bad in ("", "short", "two words and more than sixteen", "x" * 300, "é" * 20, "line-one-line-one\nline-two"):
        (given / "admin.token").write_text(bad)
        with pytest.raises(TokenError) as raised:
            load_admin_token(given, tmp_path)
        assert bad == "" or bad not in raised.value.message


# -- reading -----------------------------------------------------------------------------------------------------------


def test_objects_by_pages_and_hostile_names(board: MemoryDashboard) -> None:
    board.box.objects = [stored(url, size_bytes=i) for i, url in enumerate(HOSTILE)]
    board.box.objects += [stored(f"http://a.example/{n:05}.ts", size_bytes=n) for n in range(1000)]
    first = board.ask("/api/objects?sort=size&limit=50&offset=0").json
    assert (first["total"], len(first["objects"])) == (1004, 50)
    assert first["objects"][0]["size_bytes"] == 999
    assert len(board.ask("/api/objects?limit=100000").json["objects"]) == 200
    pages = [board.ask(f"/api/objects?limit=200&offset={n}").json["objects"] for n in range(0, 1200, 200)]
    everything = [row["url"] for page in pages for row in page]
    assert sorted(everything) == sorted(each["url"] for each in board.box.objects)
    assert set(HOSTILE) <= set(everything)
    answer = board.ask("/api/objects?contains=%3Cimg")
    assert answer.json["total"] == 1
    assert answer.body.isascii(), "bidi marks travel as escapes"
    for query in (
        "limit=0", "limit=-1", "limit=x", "offset=1e3", "sort=bytes", "offset=%D9%A1", "contains=%FF", "a=b=&&",
        "contains=%00",
    ):  # fmt: skip
        assert board.ask(f"/api/objects?{query}").status == 400, query


def test_other_readings(board: MemoryDashboard) -> None:
    board.box.events = [{"number": n, "what": "x"} for n in range(1, 6)]
    assert [row["number"] for row in board.ask("/api/events?after=3").json["events"]] == [4, 5]
    assert board.ask("/api/policy").json["files"][0]["text"] == "version: 1\n"
    assert board.ask("/api/policy?number=9").status == 404
    assert board.ask("/api/recent").json["at_s"] == [1.0, 2.0]
    assert board.ask("/api/status").json["site"] == "lyon"
    for path in ("/api", "/api/", "/api/nothing", "/api/live/"):
        assert board.ask(path).status == 404


def test_a_hundred_pages_share_one_snapshot(board: MemoryDashboard) -> None:
    with ThreadPoolExecutor(20) as pool:
        bodies = set(pool.map(lambda _: board.ask("/api/live").body, range(200)))
    assert len(bodies) == 1
    board.box.renew()
    assert board.ask("/api/live").body not in bodies


# -- the real box ------------------------------------------------------------------------------------------------------


def dashboard_of(box: RunningBox) -> Dashboard:
    return Dashboard(*address_of(box.status()["admin"]))


def test_the_box_shows_what_it_does(origin: RecordingOrigin, tmp_path: Path) -> None:
    policy = policy_for(origin.url, classes={"webcast": {}}, origins={"media": {"class": "webcast"}})
    with RunningBox(tmp_path, policy) as box:
        board = dashboard_of(box)
        names = ["/good/a", "/good/b?token=hush", "/good/" + "x" * 4000, "/good/<img%20onerror=alert(1)>"]
        for name in [*names, *names]:
            assert box.get(name).status == 200, name
        live = wait_for(
            lambda: (found := board.ask("/api/live").json)["counters"]["requests"] >= 8
            and found["classes"][0]["objects"] == 4 and found, what="counted",
        )  # fmt: skip
        assert live["classes"][0]["name"] == "webcast"
        assert live["classes"][0]["hits"] == 4
        assert live["origins"][0]["hit_ratio"] == 0.5
        assert live["origins"][0]["upstreams"][0]["state"] == "ok"
        assert live["level"] == "ok"
        assert len(wait_for(lambda: board.ask("/api/recent").json["at_s"])) >= 1
        page = board.ask("/api/objects?sort=size").json
        assert page["total"] == 4
        shown = board.ask("/api/objects").body + board.ask("/").body
        assert b"hush" not in shown
        row = next(row for row in page["objects"] if "?" in row["url"])
        token = json.loads(box.accelctl("--json", "admin", "token").stdout)["token"]
        assert board.change("/api/purge", {"id": row["id"]}, token).json["purged"] == 1
        assert board.ask("/api/objects").json["total"] == 3
        assert board.ask("/api/objects?contains=IMG").json["total"] == 1
        assert board.ask("/api/objects?contains=hush").json["total"] == 0
        assert board.change("/api/purge", {"id": "0" * 24}, token).status == 404
        wait_for(lambda: "audit: dashboard: purge" in box.output, what="the log's thread has written it")
        assert token not in box.output
        assert board.change("/api/purge", {"origin": "media"}, "x" * 20).status == 401
        wait_for(lambda: "admin listener: wrong token" in box.output, what="the log's thread has written it")
        assert board.ask("/api/policy").json["number"] == 1
        assert board.ask("/api/policy/diff").status == 404, "there is none before it"
        box.reload({"limits": {"drain": "1s"}})
        diff = board.ask("/api/policy/diff").json
        assert [change["key"] for change in diff["changes"]] == ["limits.drain"]
        assert board.change("/api/policy/rollback", {}, token).json["restored"] == 1
        events = board.ask("/api/events").json
        assert "refused" in {event["kind"] for event in events["events"]}
        assert events["last"] == events["events"][-1]["number"]


def test_a_failing_origin_is_shown_everywhere(origin: RecordingOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_for("http://127.0.0.1:1")) as box:
        board = dashboard_of(box)
        for i in range(6):
            box.get(f"/{i}")
        live = wait_for(lambda: (found := board.ask("/api/live").json)["level"] == "bad" and found, what="bad")
        assert live["findings"][0]["code"] in ("origin-down", "viewers-errors")
        row = box.status()["upstreams"][0]
        assert (row["origin"], row["state"] in ("open", "half-open"), row["failures"]) == ("media", True, 0)
        assert "not asked" in box.accelctl("status").stdout or "on trial" in box.accelctl("status").stdout
        assert "1 of 1 not asked" in box.accelctl("top", "--once", "--interval", "0.1").stdout
        assert box.metrics()["accelerator_upstream_usable{media}{http://127.0.0.1:1}"] == 0.0


def test_accelctl_gives_the_token_and_no_log_has_it(origin: RecordingOrigin, tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_for(origin.url)) as box:
        shown = box.accelctl("admin", "token").stdout
        token = (tmp_path / "state" / "credentials" / "admin.token").read_text().strip()
        assert token in shown
        assert stat.S_IMODE((tmp_path / "state" / "credentials" / "admin.token").stat().st_mode) == 0o600
        wait_for(lambda: "admin token: done" in box.output, what="the log's thread has written it")
        assert token not in box.output


def test_a_hundred_open_pages_do_not_slow_the_box(origin: RecordingOrigin, tmp_path: Path) -> None:
    """Each asks once a second over a connection of its own, as the page does. Prints the CPU that they cost."""
    with RunningBox(tmp_path, policy_for(origin.url)) as box:
        host, port = address_of(box.status()["admin"])
        pages = [http.client.HTTPConnection(host, port, timeout=20) for _ in range(100)]
        try:
            delays_s = []
            cpu_s, began_s = box.cpu_seconds(), time.monotonic()
            for _ in range(3):
                for page in pages:
                    asked_s = time.monotonic()
                    page.request("GET", "/api/live")
                    answer = page.getresponse()
                    assert answer.status == 200
                    answer.read()
                    delays_s.append(time.monotonic() - asked_s)
            spent_s = box.cpu_seconds() - cpu_s
            print(f"300 answers in {time.monotonic() - began_s:.2f} s, {spent_s / 3:.3f} s of CPU for 100, median "
                  f"{statistics.median(delays_s) * 1e3:.2f} ms")  # fmt: skip
            assert spent_s < 1.5, "a second of a hundred pages costs well below half a core"
            assert box.get("/good/a", host=HOST).status == 200
        finally:
            for page in pages:
                page.close()
