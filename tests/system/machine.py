"""A Debian machine that boots systemd, with what `make install` gives: systemd-nspawn on a debootstrap root.
No test lives here. The root is made once (build/machine/) and never written to: each machine is a layer above it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from running_box import PROJECT, wait_for

CACHE = PROJECT / "build" / "machine"
RELEASE = "bookworm"
# What docs/install.md asks for, and systemd.
PACKAGES = "systemd,systemd-sysv,dbus,procps,python3,ca-certificates,libnghttp2-14,libssl3,nftables"
PACKAGES += ",libsrt1.5-gnutls,librist4"
TOOLS = ("systemd-nspawn", "debootstrap", "nsenter")


def skip_unless_possible() -> None:
    if os.geteuid() != 0:
        pytest.skip("booting a machine needs root")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def mirror() -> str:
    """Where this machine's own Debian packages come from."""
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {RELEASE}"]
    done = subprocess.run(targets, capture_output=True, text=True, check=False)
    return next(iter(done.stdout.split()), "")


def base_root() -> Path:
    """The bare Debian, from the cache or made now. Skips the test where that fails."""
    base = CACHE / f"base-{RELEASE}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    if base.exists():
        return base
    new = CACHE / ".base.new"
    shutil.rmtree(new, ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "debootstrap.log").open("wb") as log:
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(new), mirror()]
        if subprocess.run([part for part in command if part], stdout=log, stderr=log, check=False).returncode != 0:
            pytest.skip(f"debootstrap failed: {log.name}")
    new.rename(base)
    return base


class Machine:
    """Boots between __enter__ and __exit__. It shares the network with the tests, and nothing else: their own one, or
    that of a namespace."""

    def __init__(self, work: Path, namespace: str = "") -> None:
        self.work = work
        self.namespace = namespace
        self.root = work / "root"
        self.leader = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        base = base_root()
        product, upper, inner = (self.work / name for name in ("product", "upper", "inner"))
        for folder in (product, upper, inner, self.root):
            folder.mkdir(parents=True)
        subprocess.run(["make", "--silent", "install", f"DESTDIR={product}"], cwd=PROJECT, check=True)
        layers = f"lowerdir={product}:{base},upperdir={upper},workdir={inner}"
        mount = ["mount", "-t", "overlay", "-o", layers, "overlay", str(self.root)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no overlay here: {done.stderr.strip()}")
        try:
            self._boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()  # asks the machine's systemd to halt
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
            self._process.kill()
            self._process.wait()
        subprocess.run(["umount", "--lazy", str(self.root)], check=False)

    def _boot(self) -> None:
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", "--console=pipe"]
        # nspawn's own filter knows no landlock (systemd 252), which real machines have.
        command += ["--system-call-filter=landlock_create_ruleset landlock_restrict_self"]
        command += [f"--directory={self.root}", f"--machine=accelerator-{os.getpid()}", "--link-journal=no"]
        if self.namespace:
            command += [f"--network-namespace-path=/run/netns/{self.namespace}", "--capability=CAP_NET_ADMIN"]
        log = self.work / "boot.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait_for(lambda: self._ended() or self._is_up(), seconds=60, what="the machine is up")
        except TimeoutError as error:
            error.add_note(log.read_text(errors="replace"))
            raise
        if self._ended():
            pytest.skip(f"systemd-nspawn can't boot here: {log.read_text(errors='replace')[-500:]}")

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _is_up(self) -> bool:
        # The process that nspawn starts first sets the machine up and starts its init, which then is nspawn's child.
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children or os.stat(f"/proc/{children[0]}/ns/pid") == os.stat("/proc/self/ns/pid"):
            return False
        self.leader = int(children[0])
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in the machine. Raises AssertionError when it fails, with what it said."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.leader), "--all", "--", *command],
            capture_output=True, text=True, timeout=120, check=False, cwd="/",
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def property(self, name: str, unit: str = "acceleratord.service") -> str:
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def becomes(self, name: str, wanted: str | Callable[[str], bool], *, seconds: float = 20) -> str:
        """Waits until a property of the service is so; its value."""
        ends = time.monotonic() + seconds
        while True:
            value = self.property(name)
            if value == wanted if isinstance(wanted, str) else wanted(value):
                return value
            assert time.monotonic() < ends, f"{name} is {value}\n{self.journal()}"

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--output=short-monotonic", "--lines=60", check=False).stdout

    def write(self, path: str, text: str) -> None:
        """A file in the machine, written there: a mounted layer must not be changed from below."""
        script = 'mkdir -p "${0%/*}" && cat >"$0"'
        command = ["nsenter", "--target", str(self.leader), "--all", "--", "sh", "-c", script, path]
        subprocess.run(command, input=text, text=True, check=True, cwd="/")
