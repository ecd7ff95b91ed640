"""accelctl as an operator meets it: the real program in a process, its streams, its exit codes, its start-up time."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_box import HOSTILE, REPOSITORY, RunningControl, accelctl, stored

from accelerator.control.commands import COMMANDS

POLICY = b"""\
version: 1
site: {name: lyon}
listen:
  lan: {address: "127.0.0.1:8080"}
origins:
  media:
    from: ["http://192.0.2.1"]
    hosts: ["*"]
"""


@pytest.fixture
def control(tmp_path: Path) -> Iterator[RunningControl]:
    with RunningControl(tmp_path / "control.sock") as running:
        yield running


# Each: the command, and what its table has to show.
TABLES = {
    "status": (["status"], ["healthy", "lyon", "1 h 02 min", "generation 7", "127.0.0.1:43211", "accepting", "alive"]),
    "cache stats": (["cache", "stats"], ["hit ratio", "90.0 %", "95.4 MiB", "512.0 MiB", "memory limit"]),
    "cache ls": (["cache", "ls"], ["http://a.example/live/3.ts", "2.9 KiB", "2.0 GiB", "5.0 s", "1 to 6 of 6"]),
    "cache purge": (["cache", "purge", "--prefix", "http://a.example/live/"], ["5 objects purged"]),
    "top": (["top", "--once", "--interval", "0.2"], ["requests/s", "50.0 %", "Mbit/s", "library", "3.0 MiB"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_each_command_as_a_table_and_as_json(name: str, control: RunningControl) -> None:
    arguments, shown = TABLES[name]
    table = accelctl(*arguments, socket_path=control.path)
    assert (table.returncode, table.stderr) == (0, "")
    for text in shown:
        assert text in table.stdout
    assert "\x1b" not in table.stdout, "no colours into a pipe"
    # --json and --socket before, between and after the words of the command.
    for at in range(len(name.split()) + 1):
        mixed = [*arguments[:at], "--json", f"--socket={control.path}", *arguments[at:]]
        answer = accelctl(*mixed)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert isinstance(json.loads(answer.stdout), dict)
        assert answer.stdout.count("\n") == 1


def test_json_holds_the_contract(control: RunningControl) -> None:
    def ask(*arguments: str) -> dict[str, object]:
        answer: dict[str, object] = json.loads(accelctl(*arguments, "--json", socket_path=control.path).stdout)
        return answer

    assert {"listeners", "policy", "workers", "health"} <= ask("status").keys()
    stats = ask("cache", "stats")
    assert stats["memory_limit_bytes"] == 512 * 2**20, "plain numbers"
    names = "requests hits misses collapsed passed refused bytes_to_viewers bytes_from_origin objects evictions"
    assert set(names.split()) <= stats.keys()
    assert ask("cache", "purge", "http://a.example/live/1.ts") == {"purged": 1}
    assert ask("cache", "purge", "--origin", "library") == {"purged": 1}
    assert ask("cache", "ls")["total"] == 4
    sample = ask("top", "--interval", "0.2")
    assert 0.2 <= float(str(sample["interval_s"])) < 5
    assert sample["hit_ratio"] == 0.9
    assert [origin["name"] for origin in sample["origins"]] == ["media", "library"]  # type: ignore[attr-defined]
    assert sample["requests_per_s"] == pytest.approx(100 / float(str(sample["interval_s"])), rel=0.01)


def test_cache_ls_filters_sorts_and_pages(control: RunningControl) -> None:
    def urls(*arguments: str) -> list[str]:
        answer = accelctl("cache", "ls", "--json", *arguments, socket_path=control.path)
        return [each["url"].rpartition("/")[2] for each in json.loads(answer.stdout)["objects"]]

    assert urls("--origin", "library") == ["film.mp4"]
    assert urls("--prefix", "http://a.example/live/", "--sort", "size") == [f"{n}.ts" for n in (5, 4, 3, 2, 1)]
    assert urls("--prefix", "http://a.example/live/", "--sort", "ttl", "--limit", "2", "--offset", "1") == [
        "2.ts",
        "3.ts",
    ]
    assert urls("--offset", "100") == []
    page = accelctl("cache", "ls", "--limit", "2", "--offset", "2", socket_path=control.path)
    assert "3 to 4 of 6; more: --offset 4" in page.stdout


USAGE = {
    "no command": [],
    "half a command": ["cache"],
    "no such command": ["stauts"],
    "no such option": ["status", "--verbose"],
    "an abbreviation": ["cache", "ls", "--lim", "5"],
    "signed number": ["cache", "ls", "--limit", "+5"],
    "underscore": ["cache", "ls", "--limit", "1_0"],
    "Arabic digits": ["cache", "ls", "--limit", "\u0665"],
    "zero rows": ["cache", "ls", "--limit", "0"],
    "no such sort": ["cache", "ls", "--sort", "colour"],
    "no interval": ["top", "--interval", "0"],
    "not a number": ["top", "--interval", "nan"],
    "purge nothing": ["cache", "purge"],
    "purge two": ["cache", "purge", "http://x/", "--origin", "y"],
    "purge the empty prefix": ["cache", "purge", "--prefix", ""],
    "escape in a URL": ["cache", "purge", "http://x/\x1b[2J"],
    "not UTF-8": ["cache", "purge", "http://x/\udcff"],
    "no path": ["policy", "check"],
    "escape in a command": ["\x1b[2J"],
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_2_and_one_line(case: str, control: RunningControl) -> None:
    answer = accelctl(*USAGE[case], socket_path=control.path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.rstrip("\n").isprintable()
    assert control.server.counts["connections"] == 0


def test_no_daemon_is_3_and_a_refusal_is_1(control: RunningControl, tmp_path: Path) -> None:
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(dead))
    for path in (tmp_path / "absent.sock", dead, tmp_path / ("x" * 200), tmp_path / "\x1b[31mred.sock"):
        for command in (["status"], ["cache", "purge", "http://x/"], ["top", "--once"]):
            answer = accelctl(*command, socket_path=path)
            assert (answer.returncode, answer.stdout) == (3, "")
            assert re.fullmatch(r"accelctl: no daemon on [^\n]+: [^\n]+\n", answer.stderr)
            assert "\x1b" not in answer.stderr
            assert json.loads(accelctl(*command, "--json", socket_path=path).stdout)["error"]["kind"] == "no-daemon"
    refused = accelctl("cache", "purge", "--origin", "nobody", socket_path=control.path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "accelctl: no origin 'nobody'\n"
    assert "/run/accelerator/control.sock" in accelctl("status").stderr


def test_a_peer_that_is_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    for said, code in ((b"", 3), (b"220 smtp ready\n", 1), (b'{"ok": true}\n', 1), (b'{"ok": fal', 3)):
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()
            client = subprocess.Popen(
                [sys.executable, "-m", "accelerator.cli", "--socket", str(path), "status"],
                cwd=REPOSITORY,
                stderr=subprocess.PIPE,
                text=True,
            )
            peer, _ = listening.accept()
            peer.sendall(said)
            peer.recv(1000)
            peer.close()
            _, error = client.communicate(timeout=20)
        assert client.returncode == code
        assert error.count("\n") == 1


def test_names_cannot_steer_the_terminal(control: RunningControl) -> None:
    control.box.objects = [stored(HOSTILE)]
    control.box.reasons = ["origin \x1b[2J said \u202eno"]
    for arguments in (["cache", "ls"], ["status"]):
        shown = accelctl(*arguments, socket_path=control.path).stdout
        assert all(char.isprintable() or char == "\n" for char in shown)
    assert (
        "http://a.example/\\x1b]0;owned\\x07\\u202egnp.ts[red]:smile:"
        in accelctl("cache", "ls", socket_path=control.path).stdout
    )
    assert (
        json.loads(accelctl("cache", "ls", "--json", socket_path=control.path).stdout)["objects"][0]["url"] == HOSTILE
    )


def test_pipes_and_full_disks(control: RunningControl) -> None:
    control.box.objects = [stored(f"http://a.example/{'long/' * 60}{n}.ts") for n in range(5000)]
    table = accelctl("cache", "ls", "--limit", "5000", socket_path=control.path)
    assert sum(line.strip().startswith("http://") and ".ts " in line for line in table.stdout.splitlines()) == 5000
    program = f"{sys.executable} -m accelerator.cli --socket {control.path}"
    for options in ("", "--json"):
        piped = subprocess.run(
            ["bash", "-c", f"{program} cache ls --limit 5000 {options} | head -c 10; echo ${{PIPESTATUS[0]}}"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert piped.stderr == ""
        assert piped.stdout.endswith("0\n")
    full = subprocess.run(
        ["bash", "-c", f"{program} status --json > /dev/full"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (full.returncode, full.stderr) == (1, "accelctl: [Errno 28] No space left on device\n")
    closed = subprocess.run(
        ["bash", "-c", f"{program} status --json >&-"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (closed.returncode, closed.stderr) == (0, "")
    ascii_only = accelctl("status", socket_path=control.path, PYTHONIOENCODING="ascii")
    assert ascii_only.returncode == 0


def test_help_of_each_command() -> None:
    whole = accelctl("--help")
    assert whole.returncode == 0
    for command in COMMANDS:
        words = command.name.split()
        assert words[0] in whole.stdout
        page = accelctl(*words, "--help")
        text = " ".join(page.stdout.split())
        assert page.returncode == 0
        assert command.help in text
        assert "exit status: 0 done, 1 refused or problem found, 2 usage, 3 no daemon" in text
        for argument in command.arguments:
            assert (argument.help in text) is not argument.is_sent
            if argument.is_sent:
                continue
            assert argument.is_positional or f"--{argument.name}" in text


def test_policy_check(tmp_path: Path) -> None:
    absent = tmp_path / "no.sock"
    good = tmp_path / "good.yaml"
    good.write_bytes(POLICY)
    answer = accelctl("policy", "check", str(good), socket_path=absent)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, f"{good}: ok\n", "")
    answer = accelctl("policy", "check", str(good), "--json", socket_path=absent)
    assert json.loads(answer.stdout) == {"ok": True, "problems": []}
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(POLICY.replace(b"hosts", b"hots") + b"workes: 2\n")
    answer = accelctl("policy", "check", str(bad), socket_path=absent)
    assert (answer.returncode, answer.stdout) == (1, "")
    lines = answer.stderr.splitlines()
    assert len(lines) >= 2
    assert all(re.match(rf"{re.escape(str(bad))}:\d+:\d+: ", line) for line in lines)
    assert "workers" in answer.stderr
    document = json.loads(accelctl("policy", "check", str(bad), "--json").stdout)
    assert document["ok"] is False
    assert len(document["problems"]) == len(lines)
    assert document["problems"][0].keys() == {"file", "line", "column", "message", "warning"}
    absent_policy = accelctl("policy", "check", str(tmp_path / "absent.yaml"))
    assert (absent_policy.returncode, absent_policy.stdout) == (1, "")
    assert absent_policy.stderr.count("\n") == 1


def test_policy_warnings_do_not_fail(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_bytes(POLICY + b"    override_private: true\n")
    answer = accelctl("policy", "check", str(policy))
    assert answer.returncode == 0
    assert ": warning: " in answer.stderr
    document = json.loads(accelctl("policy", "check", str(policy), "--json").stdout)
    assert document["ok"] is True
    assert document["problems"][0]["warning"] is True


def test_policy_needs_no_compiled_code(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_bytes(POLICY)
    for command in (["check", str(tmp_path / "policy.yaml")], ["schema"]):
        program = (
            "import sys; from accelerator.cli import main; code = main(sys.argv[1:]);"
            "assert not [name for name in sys.modules if name == 'ext' or name.startswith('ext.')]; sys.exit(code)"
        )
        answer = subprocess.run(
            [sys.executable, "-c", program, "policy", *command],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stderr == ""
    assert json.loads(answer.stdout)["$schema"].startswith("https://json-schema.org/")


class Terminal:
    """accelctl on a terminal of its own, as somebody sits before it."""

    def __init__(self, path: Path, *arguments: str, **environment: str) -> None:
        self.fd, self._inner = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
        self.settings = termios.tcgetattr(self.fd)
        self.screen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "accelerator.cli", "--socket", str(path), *arguments],
            cwd=REPOSITORY,
            stdin=self._inner,
            stdout=self._inner,
            stderr=self._inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
            | {"TERM": "xterm-256color"}
            | environment,
        )

    def read_until(self, text: bytes) -> None:
        end = time.monotonic() + 20
        while text not in self.screen:
            assert time.monotonic() < end, self.screen
            if select.select([self.fd], [], [], 0.1)[0]:
                self.screen += os.read(self.fd, 65536)

    def leave(self) -> int:
        """The exit code, once everything that it printed was read."""
        end = time.monotonic() + 20
        while self.process.poll() is None or select.select([self.fd], [], [], 0)[0]:
            assert time.monotonic() < end
            if select.select([self.fd], [], [], 0.1)[0]:
                self.screen += os.read(self.fd, 65536)
        assert termios.tcgetattr(self.fd) == self.settings, "the terminal is as it was"
        os.close(self._inner)
        os.close(self.fd)
        return self.process.returncode


@pytest.mark.parametrize("way_out", ["q", "ctrl-c", "sigterm"])
def test_top_on_a_terminal_and_out(way_out: str, control: RunningControl) -> None:
    control.box.origin_names.append("evil\x1b]0;owned\x07")
    terminal = Terminal(control.path, "top", "--interval", "0.1")
    terminal.read_until(b"requests/s")
    terminal.read_until(b"evil\\x1b]0;owned\\x07")
    assert b"\x1b[?1049h" in terminal.screen, "on the alternate screen"
    if way_out == "sigterm":
        terminal.process.send_signal(signal.SIGTERM)
    else:
        os.write(terminal.fd, b"q" if way_out == "q" else b"\x03")
    assert terminal.leave() == (143 if way_out == "sigterm" else 0)
    assert b"\x1b[?1049l" in terminal.screen, "and back from it"
    assert b"\x1b]0;owned" not in terminal.screen
    assert b"Traceback" not in terminal.screen


def test_ctrl_c_in_a_finalizer_is_not_lost() -> None:
    """Seen once on a busy machine: `top` went on after Ctrl-C, as Python drops what a finalizer's handler raises."""
    code = """
import os, signal
from accelerator.control.top import _Signals
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
with _Signals() as signals:
    Finalized()
    try:
        signals.raise_again()
    except KeyboardInterrupt:
        print("left")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "left\n"


def test_top_waits_for_a_daemon_that_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with RunningControl(path):
        terminal = Terminal(path, "top", "--interval", "0.1")
        terminal.read_until(b"requests/s")
    terminal.read_until(b"trying again")
    terminal.screen = b""
    with RunningControl(path):
        terminal.read_until(b"requests/s")
    os.write(terminal.fd, b"q")
    assert terminal.leave() == 0
    never = Terminal(path, "top")
    assert never.leave() == 3
    assert b"1049h" not in never.screen


def test_colours_on_a_terminal_unless_NO_COLOR(control: RunningControl) -> None:  # noqa: N802
    plain = Terminal(control.path, "status", NO_COLOR="1")
    assert plain.leave() == 0
    assert b"healthy" in plain.screen
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m", plain.screen)
    coloured = Terminal(control.path, "status")
    assert coloured.leave() == 0
    assert re.search(rb"\x1b\[[0-9;]*32m", coloured.screen)


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--json"]], ids=" ".join)
def test_starts_fast(arguments: list[str], control: RunningControl) -> None:
    times_s = []
    for _ in range(11):
        begun = time.monotonic()
        assert accelctl(*arguments, socket_path=control.path).returncode == 0
        times_s.append(time.monotonic() - begun)
    median_s = statistics.median(times_s)
    print(f"accelctl {' '.join(arguments)}: median {median_s * 1000:.0f} ms, best {min(times_s) * 1000:.0f} ms")
    assert median_s < 1.5  # the contract is 0.3 s; a shared machine can be five times slower
    slow = "{'rich', 'asyncio', 'pydantic', 'aiohttp', 'yaml'}"
    program = f"import sys, accelerator.cli; print(sorted({slow} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"
