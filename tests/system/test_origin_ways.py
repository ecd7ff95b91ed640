"""The policy's words about the way to an origin, as the running daemon obeys them: parent proxy, breaker, DNS."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hostile_origin import STANDARD, reply, serving
from parent_proxies import free_port, squid
from running_box import RunningBox, policy_for, wait_for


@pytest.mark.skipif(shutil.which("squid") is None, reason="needs squid")
def test_an_origin_behind_squid_with_a_log_in(tmp_path: Path) -> None:
    with squid("branch:secret") as port, serving(STANDARD) as origin:
        ways = {"via": f"http://127.0.0.1:{port}", "via_credential": "proxy"}
        box = RunningBox(tmp_path, policy_for(f"http://localhost:{origin.port}", origins={"media": ways}))
        login = box.state / "credentials" / "proxy.login"
        login.parent.mkdir(parents=True)
        box.state.chmod(0o700)
        login.write_text("branch:secret\n")
        with box:
            response = box.get("/ok")
            assert (response.status, response.body) == (200, b"hello")
            assert "squid.example" in response.fields.get("via", "")
            assert box.get("/ok").body == b"hello"
            via = origin.requests[0].field(b"via")
            assert via is not None
            assert via.startswith(b"1.1 test, 1.1 squid.example")
            assert origin.requests[0].field(b"cdn-loop") == b"test"
            # A log-in that is wrong from now on is taken over, as only the proxy knows it; no viewer hears 407.
            login.write_text("branch:wrong\n")
            assert "policy taken over" in box.reload()
            response = box.get("/chunked")
            assert response.status == 502
            assert "proxy-authenticate" not in response.fields
            wait_for(lambda: "refuses our log-in: 407" in box.output)
            assert "branch:wrong" not in box.output


def test_a_dead_origin_is_answered_for_at_once_and_told_once(tmp_path: Path) -> None:
    """reliability.md fault 18."""
    port = free_port()
    with RunningBox(tmp_path, policy_for(f"http://127.0.0.1:{port}")) as box:
        statuses = [box.get(f"/{i}").status for i in range(8)]
        assert statuses == [502] * 5 + [503] * 3
        response = box.get("/9")
        assert "retry-after" in response.fields
        assert response.fields["cache-control"] == "no-store"
        wait_for(lambda: "is not asked any more" in box.output)
        assert box.output.count("is not asked any more") == 1
        with serving({b"/ok": reply(b"hello")}, port=port):
            wait_for(lambda: box.get("/ok").status == 200)
        wait_for(lambda: "breaker-closed" in box.output)


def test_a_name_that_cannot_be_resolved_is_told(tmp_path: Path) -> None:
    with RunningBox(tmp_path, policy_for("http://nowhere.invalid", origins={"media": {"resolve_grace": "0s"}})) as box:
        assert box.get("/").status in (502, 504)
        wait_for(lambda: "dns-failed: nowhere.invalid" in box.output)
