"""The keeper process and netd's end of it, without a kernel's routes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from accelerator.kernel.keeper import SLOTS
from accelerator.kernel.kept import Kept

PROJECT = Path(__file__).resolve().parent.parent.parent


def end(kept: Kept) -> None:
    """Closes it, and its process ends as its time alone is over."""
    process = kept._process
    kept.close()
    assert process is not None
    process.wait(10)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    first = Kept(tmp_path / "keeper.sock", 0.3)
    with open(tmp_path / "kept", "w") as file:
        first.keep(SLOTS[0], file.fileno())
    first.close()
    second = Kept(tmp_path / "keeper.sock", 0.3)
    assert second._process is None
    assert os.readlink(f"/proc/self/fd/{second.descriptors[SLOTS[0]]}") == str(tmp_path / "kept")
    second.close()
    assert first._process is not None
    first._process.wait(10)


def test_the_installed_product_stands_where_no_python_looks(tmp_path: Path) -> None:
    """`python -m` found no keeper there, so that no multicast was routed."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from accelerator.kernel.kept import Kept, Path;"
    code += " kept = Kept(Path(sys.argv[2]), 0.1); print(kept._process.args[1:3]); kept.close(); kept._process.wait()"
    command = ["/usr/bin/python3", "-IS", "-c", code, str(PROJECT), str(tmp_path / "keeper.sock")]
    assert subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout == "['-I', '-S']\n"


def test_a_keeper_that_was_being_killed_took_a_connection_and_never_answered(tmp_path: Path) -> None:
    """netd then had no keeper, and said nothing of it: the routes would have gone with it."""
    path = tmp_path / "keeper.sock"
    dying = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dying.bind(str(path))
    dying.listen(1)

    def die() -> None:
        dying.accept()[0].close()
        dying.close()

    thread = threading.Thread(target=die)
    thread.start()
    kept = Kept(path, 0.1)
    thread.join()
    assert kept._process is not None
    end(kept)


# Of our own user, and without netd's capabilities: what acceleratord is where systemd starts both.
CONNECTS = """
import socket, sys
made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
made.connect(sys.argv[1])
print(socket.recv_fds(made, 2, 2)[:2])
"""
LISTENS = """
import socket, sys
made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
made.bind(sys.argv[1])
made.listen(1)
print("listens", flush=True)
taken = made.accept()[0]
try:
    taken.send(b"-")
    print(socket.recv_fds(taken, 1, 1)[:2])
except OSError:
    print("(b'', [])")
"""
WITHOUT = ["setpriv", "--bounding-set", "-net_admin,-net_raw", sys.executable, "-c"]
needs_setpriv = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can give capabilities up for a test"
)


@needs_setpriv
def test_acceleratord_could_have_the_sockets_that_are_kept(tmp_path: Path) -> None:
    """It is of the same user, and a raw socket is a capability."""
    path = tmp_path / "keeper.sock"
    kept = Kept(path, 0.1)
    with open(tmp_path / "kept", "w") as file:
        kept.keep(SLOTS[0], file.fileno())
    said = subprocess.run([*WITHOUT, CONNECTS, str(path)], capture_output=True, text=True, timeout=10, check=False)
    assert "(b'', [])" in said.stdout or "ConnectionReset" in said.stderr
    # netd has its keeper still.
    kept.keep(SLOTS[1], os.open(tmp_path / "kept", os.O_RDONLY))
    kept.close()
    again = Kept(path, 0.1)
    assert sorted(again.descriptors) == sorted(SLOTS)
    again.close()


@needs_setpriv
def test_acceleratord_could_pose_as_the_keeper(tmp_path: Path) -> None:
    path = tmp_path / "keeper.sock"
    with subprocess.Popen([*WITHOUT, LISTENS, str(path)], stdout=subprocess.PIPE, text=True) as posing:
        assert posing.stdout is not None
        assert posing.stdout.readline() == "listens\n"
        kept = Kept(path, 0.1)
        assert kept._process is not None, "another one, a keeper"
        with open(tmp_path / "kept", "w") as file:
            kept.keep(SLOTS[0], file.fileno())
        assert posing.communicate(timeout=10)[0] == "(b'', [])\n"
    end(kept)


def test_a_keeper_that_never_answers_held_netd_up_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerator.kernel.kept._START_S", 0.3)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 20\n")
    (tmp_path / "python").chmod(0o755)
    begun_s = time.monotonic()
    with pytest.raises(RuntimeError, match="doesn't answer"):
        Kept(tmp_path / "keeper.sock", 0.1)
    assert time.monotonic() - begun_s < 10


def test_a_socket_that_was_given_as_the_keeper_died_went_to_the_next_one(tmp_path: Path) -> None:
    """It was kept nowhere, and its routes would have ended with netd."""
    kept = Kept(tmp_path / "keeper.sock", 0.1)
    assert kept._process is not None
    kept._process.kill()
    kept._process.wait()
    with open(tmp_path / "kept", "w") as file:
        kept.keep(SLOTS[0], file.fileno())
    assert list(kept.descriptors) == [SLOTS[0]]
    kept.drop(SLOTS[0])
    assert not kept.descriptors
    kept.close()
