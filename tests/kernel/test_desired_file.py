"""The file that netd begins with, torn, of another version, or written by somebody else: netd starts all the same,
with one line that says so, and takes what services say then. And two netds in one directory."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import netns
import pytest
from netd_box import NETD, NetdBox

from accelerator.kernel.checked import StateError
from accelerator.kernel.desired_file import FILE_BYTES_MAX, SERVICES_MAX, read_desired, write_desired
from accelerator.kernel.state import decode

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]
TV = {"multicast": [{"name": "tv", "upstream": "wan", "downstream": ["lan0"]}]}


def written(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)


BROKEN = {
    "nested without end": written("[" * 200_000),
    "an infinite generation": written('{"test": [Infinity, {}]}'),
    "a generation that none can follow": written(f'{{"test": [{"9" * 50}, {{}}]}}'),
    "a number that is too long": written(f'{{"test": [{"9" * 5000}, {{}}]}}'),
    "two services at odds": written(json.dumps({"a": [1, TV], "b": [1, TV]})),
    "a name for the terminal": written('{"a\\n\\u001b[31m": [1, {}]}'),
    "torn": written('{"test": [1, {"multi'),
    "of a newer version": written('{"test": [1, {"wormholes": []}]}'),
    "a list": written("[]"),
    "too many services": written(json.dumps({f"s{n}": [1, {}] for n in range(SERVICES_MAX + 1)})),
    "no text": lambda path: path.write_bytes(b"\xff\x00\xfe"),
    "too large": huge,
    "a pipe that nobody writes to": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused_in_a_line(tmp_path: Path, broken: Callable[[Path], object]) -> None:
    path = tmp_path / "netd-desired.json"
    broken(path)
    with pytest.raises(StateError) as refused:
        read_desired(path)
    assert "\n" not in refused.value.message


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    services = {"acceleratord": (7, decode(TV)), "other": (0, decode({}))}
    write_desired(tmp_path / "file", services)
    assert read_desired(tmp_path / "file") == services


@pytest.mark.parametrize("which", ["nested without end", "an infinite generation", "two services at odds"])
def test_a_broken_file_kept_netd_from_starting_for_good(tmp_path: Path, which: str) -> None:
    BROKEN[which](tmp_path / "netd-desired.json")
    with netns.Topology() as topology, NetdBox(topology.namespace("box"), tmp_path) as netd:
        assert len(netd.events("state-unreadable")) == 1
        netd.desire({"name": "tv", "upstream": "wan", "downstream": ["lan0"]})
        assert list(read_desired(tmp_path / "netd-desired.json")) == ["test"]


def test_a_second_netd_ran_beside_the_first_whose_socket_file_had_gone(tmp_path: Path) -> None:
    """Both looked after the same routes, and the first took away the second one's socket at its end."""
    with netns.Topology() as topology, NetdBox(topology.namespace("box"), tmp_path) as netd:
        (tmp_path / "netd.sock").unlink()
        second = netd.namespace.popen(str(NETD), "--state-dir", str(tmp_path), stderr=-1)
        _, said = second.communicate(timeout=60)
        assert second.returncode == 1
        assert said.decode() == f"accelerator-netd: another one runs in {tmp_path}\n"
        netd.stop(signal.SIGKILL)
        netd.start()


def test_root_who_took_it_out_left_a_lock_that_the_units_netd_could_not_open(tmp_path: Path) -> None:
    os.chown(tmp_path, 12_345, 12_345)
    with netns.Topology() as topology:
        topology.namespace("box").run(str(NETD), "--state-dir", str(tmp_path), "--remove")
    assert (tmp_path / "netd.lock").stat().st_uid == 12_345
