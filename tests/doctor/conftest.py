"""accelctl doctor as somebody runs it, in a namespace where something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import netns
import pytest

ACCELCTL = Path(sys.executable).parent / "accelctl"
BASE = "version: 1\nsite: {name: lyon}\n"
LISTEN = 'listen: {lan: {address: "127.0.0.1:8080"}}\n'

Doctor = Callable[..., dict[str, Any]]


@pytest.fixture
def box() -> Iterator[netns.Namespace]:
    if netns.why_not():
        pytest.skip(netns.why_not() or "")
    with netns.Topology() as topology:
        yield topology.namespace("box")


@pytest.fixture
def doctor(box: netns.Namespace, tmp_path: Path) -> Doctor:
    """What it says of a policy: findings by code, in "found"; the sentence of each is one line."""

    def examine(policy: str = "", *options: str, listen: float = 0, before: tuple[str, ...] = ()) -> dict[str, Any]:
        path = tmp_path / "policy.yaml"
        path.write_text(BASE + policy + ("" if "listen:" in policy else LISTEN))
        command = [*before, str(ACCELCTL), "--json", "--socket", str(tmp_path / "none.sock"), "doctor"]
        command += ["--policy", str(path), "--listen", str(listen), *options]
        done = box.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = done.communicate(timeout=60)
        assert done.returncode in (0, 1), err.decode()
        said: dict[str, Any] = json.loads(out)
        assert said["ok"] is (done.returncode == 0)
        texts = [each["text"] for each in said["findings"]]
        assert all("\n" not in text and text.endswith(".") and not text.endswith("..") for text in texts)
        assert all(each["mend"] for each in said["findings"]), "each finding has what mends it"
        said["found"] = {each["code"]: each for each in said["findings"]}
        return said

    return examine
