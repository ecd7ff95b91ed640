"""accelerator-netd as a running process in a namespace, and what asks it. No assertion stands here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netns import Namespace

NETD = Path(sys.executable).parent / "accelerator-netd"


def wait_for(condition: Callable[[], object], what: str, seconds: float = 10.0) -> Any:
    """What the condition gives once it is true."""
    end_s = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end_s:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


class NetdBox:
    """Use with `with`: at its end netd and its keeper are gone."""

    def __init__(self, namespace: Namespace, state_dir: Path) -> None:
        self.namespace = namespace
        self.state_dir = state_dir
        self.process: subprocess.Popen[bytes] | None = None
        self._generation = 0

    def __enter__(self) -> NetdBox:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for pid in self.keepers():
            os.kill(pid, signal.SIGKILL)

    def start(self) -> None:
        log = open(self.state_dir / "netd.log", "ab")  # noqa: SIM115
        self.process = self.namespace.popen(str(NETD), "--state-dir", str(self.state_dir), stderr=log)
        log.close()
        wait_for(self.answers, "netd answers")

    def answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError((self.state_dir / "netd.log").read_text())
        try:
            self.ask("show")
        except OSError:
            return False
        return True

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(10)
            self.process = None

    def keepers(self) -> list[int]:
        """Process ids of this state directory's keeper."""
        return self._processes("accelerator.kernel.keeper")

    def answering(self) -> list[int]:
        """Of the process that answers for multicast."""
        return self._processes("accelerator.kernel.multicast_process")

    def _processes(self, module: str) -> list[int]:
        wanted = {module.encode(), str(self.state_dir / "netd-keeper.sock").encode()}
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted <= set(words):
                found.append(int(path.parent.name))
        return found

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """The result; RuntimeError with the message of a refusal."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.state_dir / "netd.sock"))
            connection.sendall(json.dumps({"command": command, "args": arguments}).encode() + b"\n")
            with connection.makefile("rb") as reader:
                answer = json.loads(reader.readline())
        if not answer["ok"]:
            raise RuntimeError(answer["error"]["message"])
        result: dict[str, Any] = answer["result"]
        return result

    def desire(self, *proxies: dict[str, object], service: str = "test", **more: object) -> None:
        """The whole state of a service: its proxies, and what else is named."""
        self._generation += 1
        state = {"multicast": list(proxies), **more}
        self.ask("desire", service=service, generation=self._generation, state=state)

    def proxy(self, *, is_v6: bool = False, name: str = "tv") -> dict[str, Any]:
        shown: dict[str, Any] = self.ask("show")["multicast"]["ipv6" if is_v6 else "ipv4"][name]
        return shown

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.ask("show")["events"] if each["kind"] == kind]

    def ready(self, *, name: str = "tv") -> None:
        """Both families use all interfaces, and are querier where that is wanted."""

        def is_ready() -> bool:
            shown = self.ask("show")["multicast"]
            return len(shown) == 2 and all(
                not each[name]["missing"] and all(down["is_querier"] for down in each[name]["downstreams"].values())
                for each in shown.values()
            )

        wait_for(is_ready, "netd uses its interfaces")
