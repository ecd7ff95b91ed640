"""The PAC as a JavaScript engine runs it: what goes through the box, and that everything else goes DIRECT."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from accelerator.protocols.pac import pac_script

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="PAC files are run by node")
THROUGH = "PROXY box.lyon.example:8080; DIRECT"


def asked(script: str, *urls: str, own: str | None = "10.12.0.9") -> list[str]:
    questions = [[url, url.partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0]] for url in urls]
    given = json.dumps({"script": script, "own": own, "questions": questions})
    command = ["node", str(Path(__file__).with_name("pac.mjs"))]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    answers: list[str] = json.loads(done.stdout)
    return answers


def test_known_hosts_go_through_the_box_and_fall_back() -> None:
    hosts = ["media.example", "*.cdn.example"]
    script = pac_script("lyon", "box.lyon.example:8080", hosts, own_hosts=["box.lyon.example"])
    through = ["http://media.example/a", "http://MEDIA.example:81/a", "http://media.example./a", "http://eu.cdn.example/"]
    direct = ["http://other.example/", "http://cdn.example/", "http://mediaxexample/", "https://media.example/a",
              "http://media.example.evil/", "http://box.lyon.example/", "ftp://media.example/"]  # fmt: skip
    assert asked(script, *through) == [THROUGH] * len(through)
    assert asked(script, *direct) == ["DIRECT"] * len(direct)


def test_only_browsers_of_the_zones_are_sent_to_the_box() -> None:
    script = pac_script("lyon", "box.lyon.example:8080", ["media.example"], ["10.12.0.0/22", "2001:db8::/32"])
    assert asked(script, "http://media.example/", own="10.12.3.9") == [THROUGH]
    for own in ("10.12.4.9", "192.0.2.1", "2001:db8::1", None):
        assert asked(script, "http://media.example/", own=own) == ["DIRECT"], own


def test_what_connect_may_reach_goes_through_the_box() -> None:
    script = pac_script("lyon", "box.lyon.example:8080", [], tunnels=["portal.example:443", "portal.example:8443"])
    assert asked(script, "https://portal.example/a", "https://portal.example:8443/") == [THROUGH] * 2
    assert asked(script, "https://portal.example:9/", "https://x@portal.example:8443/") == ["DIRECT", THROUGH]
    assert asked(script, "http://portal.example/") == ["DIRECT"]


def test_every_host_where_an_origin_has_every_host() -> None:
    assert asked(pac_script("lyon", "box.lyon.example:8080", ["*"]), "http://any.example/") == [THROUGH]


@pytest.mark.parametrize("name", ["a\nalert(1)//", '";x="', "__proto__"])
def test_names_are_data_and_no_script(name: str) -> None:
    script = pac_script(name, "box.lyon.example:8080", ["media.example"])
    answers = asked(script, "http://media.example/", "http://constructor/", "http://toString/")
    assert answers == [THROUGH, "DIRECT", "DIRECT"]
