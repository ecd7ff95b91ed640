"""An operator at the dashboard, in Chromium: both sizes, themes and languages, live figures, keys only, refusals.

The pictures are build/dashboard-*.png, to be looked at.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_demo import PROJECT

import_path = str(PROJECT / "tests" / "system")
HAS_BROWSER = shutil.which("chromium") is not None and shutil.which("node") is not None
needs_browser = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not HAS_BROWSER, reason="needs Debian's chromium and nodejs: make setup"),
]
STATIC = PROJECT / "accelerator" / "web" / "static"
VIEWS = ("overview", "objects", "events", "policy")
HOSTILE = "/good/%3Cimg%20src=x%20onerror=alert(1)%3E"


@pytest.fixture
def rigs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The rigs of tests/system, which this folder has no other way to import."""
    monkeypatch.syspath_prepend(import_path)
    import recording_origin
    import running_box

    return recording_origin, running_box


class Site:
    """A box with viewers, two origins of which one server is out, and a policy that replaced another."""

    def __init__(self, rigs: Any, work: Path, **admin: Any) -> None:
        recording_origin, self.running_box = rigs
        self.origin = recording_origin.RecordingOrigin()
        self.origin.__enter__()
        self.box = self.running_box.RunningBox(work, self.policy(**admin))
        self.box.__enter__()
        self._is_over = threading.Event()
        self._viewers = threading.Thread(target=self._watch)

    def policy(self, **admin: Any) -> Any:
        # A port that stays: the page has to find the box again after it was started anew.
        port = self.running_box.socket.create_server(("127.0.0.1", 0))
        number = port.getsockname()[1]
        port.close()
        return self.running_box.policy_for(
            self.origin.url,
            site={"name": "lyon-part-dieu"},
            classes={"webcast": {}, "library": {}},
            admin={"address": f"127.0.0.1:{number}", **admin},
            origins={
                "media": {"class": "webcast"},
                "library": {"from": ["http://127.0.0.1:1", self.origin.url], "hosts": ["library.example"],
                            "class": "library"},
            },
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://{self.box.policy['admin']['address']}"

    @property
    def token(self) -> str:
        return (self.box.state / "credentials" / "admin.token").read_text().strip()

    def fill(self) -> Site:
        for target in ("/good/talk.mp4?token=hush", "/good/" + "x" * 7000, HOSTILE, "/good/q3/master.m3u8"):
            assert self.box.get(target).status == 200
        for n in range(60):
            self.box.get(f"/good/film-{n:03}.mp4", host="library.example")
        self.box.reload({"limits": {"drain": "5s"}})
        self._viewers.start()
        return self

    def _watch(self) -> None:
        n = 0
        while not self._is_over.is_set():
            n += 1
            try:
                for _ in range(4):
                    self.box.get(f"/bytes/200000/segment-{n // 8:05}.m4s")
            except (OSError, RuntimeError, ValueError, StopIteration):
                pass  # the box is away for a moment, as the test wants
            self._is_over.wait(0.05)

    def restart(self) -> None:
        self.box.__enter__()

    def close(self) -> None:
        self._is_over.set()
        if self._viewers.is_alive():
            self._viewers.join()
        self.box.__exit__(None, None, None)
        self.origin.__exit__(None, None, None)


@pytest.fixture
def site(rigs: Any, tmp_path: Path) -> Iterator[Site]:
    running = Site(rigs, tmp_path)
    yield running.fill()
    running.close()


def walk(scenario: str, site: Site, *steps: Callable[[], None]) -> dict[str, Any]:
    folder = PROJECT / "build"
    folder.mkdir(exist_ok=True)
    script = PROJECT / "tests" / "browser" / "dashboard.mjs"
    command = ["node", str(script), scenario, site.url, str(folder), site.token]
    remaining = list(steps)
    with subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as walker:
        assert walker.stdin is not None
        assert walker.stdout is not None
        assert walker.stderr is not None
        last = ""
        for line in walker.stdout:
            if line.strip() == "next":
                remaining.pop(0)()
                walker.stdin.write("\n")
                walker.stdin.flush()
            else:
                last = line
        errors = walker.stderr.read()
    assert walker.returncode == 0, f"{errors}\n{last}"
    seen: dict[str, Any] = json.loads(last)
    assert seen["complaints"] == []
    assert seen["elsewhere"] == [], "nothing comes from anywhere but the box"
    assert seen["violations"] == []
    return seen


class TestInChromium:
    pytestmark = needs_browser

    def test_it_looks_right_in_every_size_theme_and_language(self, site: Site) -> None:
        looks = walk("looks", site)["looks"]
        for name in ("wide-light-en", "wide-dark-fr", "narrow-light-fr", "narrow-dark-en"):
            for view in VIEWS:
                look = looks[f"{name}-{view}"]
                assert look["width"] <= (1280 if "wide" in name else 360), (name, view, "the page scrolls sideways")
                assert look["contrasts"] == [], (name, view)
                assert look["keys"] == [], (name, view, "a key stands where a text should")
            assert looks[name]["lang"] == name[-2:]
        assert looks["wide-dark-fr"]["text"] == "Politique"

    def test_figures_move_and_never_look_live_when_they_are_not(self, site: Site) -> None:
        seen = walk("live", site, site.box.kill, site.restart)
        assert seen["moved"][0] != seen["moved"][1]
        assert (seen["origins"], seen["classes"]) == (2, 2)
        assert "%3Cimg%20src=x%20onerror=alert(1)%3E" in seen["hostile"]
        assert seen["images"] == 0
        assert not seen["shownSecret"]
        assert "does not answer" in seen["stale"]
        assert re.search(r"\d\d:\d\d:\d\d", seen["stale"])
        assert "not known" in seen["staleVerdict"]
        assert "not known" not in seen["verdict"]

    def test_keys_are_enough_and_the_token_is_asked_for(self, site: Site) -> None:
        seen = walk("keys", site)
        assert [each["what"] for each in seen["order"]] == [
            "Skip to the figures", "token-button", "theme-button", "language-button", *VIEWS,
        ]  # fmt: skip
        assert {each["outline"] for each in seen["order"]} == {"solid"}, "focus is seen"
        assert seen["backAt"] == seen["object"], "focus returns to where it was"
        assert seen["tokenFocus"] == "token"
        assert seen["wrong"] == "This is not the admin token."
        assert seen["purged"] == "1 object purged."
        assert site.token not in seen["kept"]
        assert "limits.drain: 5s → 30s" in seen["rollback"]
        assert "generation 3" in seen["returned"]
        assert seen["remembered"] == ["fr", "light"]
        assert seen["lockedAgain"] == "Déverrouiller"

    def test_without_scripts_it_says_how_things_are(self, site: Site) -> None:
        text = walk("plain", site)["text"]
        assert "lyon-part-dieu" in text
        assert re.search(r"64,0 Mo", text)

    def test_the_policy_may_want_the_token_for_reading_too(self, rigs: Any, tmp_path: Path) -> None:
        site = Site(rigs, tmp_path, token="always")
        try:
            site.box.get("/good/a")
            seen = walk("always", site)
        finally:
            site.close()
        assert (seen["before"], seen["after"]) == ("…", "lyon-part-dieu")


# -- texts, without a browser ------------------------------------------------------------------------------------------


def tables() -> dict[str, dict[str, str]]:
    return {name: json.loads((STATIC / f"{name}.json").read_text()) for name in ("en", "fr")}


def test_every_text_is_there_in_both_languages_with_the_same_holes() -> None:
    english, french = tables()["en"], tables()["fr"]
    assert english.keys() == french.keys()
    for key, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", french[key])), key
        assert text, key
        assert french[key], key


def test_every_text_that_is_used_is_there_and_every_one_is_used() -> None:
    scripts = "".join(path.read_text() for path in sorted(STATIC.glob("*.js")))
    page = (STATIC / "index.html").read_text()
    summary = (PROJECT / "accelerator" / "web" / "summary.py").read_text()
    used = set(re.findall(r"\bt\(\"([\w.-]+)\"", scripts))
    used |= set(re.findall(r"data-i18n(?:-label)?=\"([\w.-]+)\"", page))
    for key in re.findall(r"\bmany\(\"([\w.-]+)\"", scripts):
        used |= {key, f"{key}.one"}
    # Keys that are put together: their beginning is in the scripts.
    beginnings = set(re.findall(r"`([a-z]+(?:\.[a-z]+)*\.)\$\{", scripts)) | {"said.", "level.", "kind."}
    known = set(tables()["en"])
    assert used <= known
    literals = set(re.findall(r"\"([\w.-]+)\"", scripts)) | set(re.findall(r"[\"']([\w.-]+)[\"']", summary))
    unused = {key for key in known - used - literals if not key.startswith(tuple(beginnings))}
    assert {key.removesuffix(".one") for key in unused} <= used | literals


def test_codes_kinds_and_advice_of_the_box_have_texts() -> None:
    english = tables()["en"]
    findings = (PROJECT / "accelerator" / "services" / "figures" / "findings.py").read_text()
    codes = set(re.findall(r"\"((?:[a-z]+-)+[a-z]+|unhealthy)\"", findings)) - {"half-open"}
    assert {f"finding.{code}" for code in codes} <= english.keys()
    assert {f"advice.{code}" for code in codes} <= english.keys()
    from_services: set[str] = set()
    advice: set[str] = set()
    for path in (PROJECT / "accelerator" / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "note":
                continue
            is_event = ast.unparse(node.func.value).endswith("events")
            if is_event and node.args and isinstance(node.args[0], ast.Constant):
                from_services.add(node.args[0].value)
            for keyword in node.keywords:
                if is_event and keyword.arg == "advice" and isinstance(keyword.value, ast.Constant):
                    advice.add(keyword.value.value)
    assert from_services
    assert {f"kind.{kind}" for kind in from_services} <= english.keys()
    assert {f"said.{text}" for text in advice if text} <= english.keys()


@pytest.mark.parametrize("path", sorted(STATIC.glob("*.js")), ids=lambda path: path.name)
def test_scripts_are_small_say_what_they_are_for_and_parse(path: Path, tmp_path: Path) -> None:
    lines = path.read_text().splitlines()
    assert re.match(r"// [A-Z].{20,}", lines[0])
    assert len(lines) <= 250
    if shutil.which("node") is None:
        pytest.skip("needs nodejs")
    module = tmp_path / f"{path.stem}.mjs"
    module.write_text(path.read_text())
    subprocess.run(["node", "--check", str(module)], check=True, capture_output=True)
