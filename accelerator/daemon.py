"""acceleratord, the composition root: reads the command line, builds the box, hears signals. No rule lives here."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from accelerator import __version__
from accelerator.control.server import ControlServer, prepare_directory
from accelerator.errors import AcceleratorError, PolicyError
from accelerator.io.credentials import Credentials
from accelerator.policy import check_policy, load_policy
from accelerator.services.appliance import Appliance
from accelerator.web.admin import start_admin, stop_admin

log = logging.getLogger("accelerator")
PR_SET_DUMPABLE = 4


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="acceleratord: %(message)s")
    if options.check:
        return _check(options.policy)
    # Confidential video and, later, keys are in memory: no core dump, no ptrace by others of this user.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(options))
    except AcceleratorError as error:
        print(error.message, file=sys.stderr)
        return 1
    except OSError as fault:
        print(
            f"acceleratord: {fault.strerror or fault}" + (f": {fault.filename}" if fault.filename else ""),
            file=sys.stderr,
        )
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="acceleratord", description="Caches company video at a branch office.")
    parser.add_argument("--policy", type=Path, required=True, metavar="FILE_OR_DIR", help="the policy (YAML)")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="where the control socket and state are")
    parser.add_argument("--credentials", type=Path, metavar="DIR", help="where keys and certificates are")
    parser.add_argument("--check", action="store_true", help="check the policy, and end")
    parser.add_argument("--version", action="version", version=f"acceleratord {__version__}")
    options = parser.parse_args(arguments)
    if not options.check and options.state_dir is None:
        parser.error("--state-dir is needed to run")
    return options


def _check(path: Path) -> int:
    policy, problems = check_policy(path)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 0 if policy is not None else 1


def _credentials_directory(options: argparse.Namespace) -> Path:
    if options.credentials is not None:
        return Path(options.credentials)
    # Where systemd puts what LoadCredential= names.
    by_systemd = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(by_systemd or options.state_dir / "credentials")


async def _serve(options: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    policy = load_policy(options.policy)
    prepare_directory(options.state_dir)
    box = Appliance(policy, options.policy, loop, Credentials(_credentials_directory(options)))
    ending = asyncio.Event()
    at_once = asyncio.Event()

    def end() -> None:
        (at_once if ending.is_set() else ending).set()

    def reload() -> None:
        try:
            generation = box.apply(load_policy(options.policy))
        except PolicyError as error:
            log.error("policy refused, the running one stays:\n%s", error.message)
        except AcceleratorError as error:
            log.error("policy refused, the running one stays: %s", error.message)
        else:
            log.info("policy taken over, generation %d", generation)

    control = ControlServer(box, options.state_dir / "control.sock", audit=_audit)
    await control.start()
    runner = None
    try:
        if box.tables.admin is not None:
            host, port = box.tables.admin
            try:
                runner, real_port = await start_admin(box, host, port)
            except OSError as fault:
                raise AcceleratorError("listen", f"admin: {host}:{port}: {fault.strerror}") from fault
            box.admin_address = (host, real_port)
        box.extra_counters = control.counters
        box.start()
        loop.add_signal_handler(signal.SIGTERM, end)
        loop.add_signal_handler(signal.SIGINT, end)
        loop.add_signal_handler(signal.SIGHUP, reload)
        for row in box.status()["listeners"]:
            log.info("serving viewers on %s (%s)", row["address"], row["name"])
        await ending.wait()
        log.info("draining")
        drained = asyncio.ensure_future(box.drain())
        second = asyncio.ensure_future(at_once.wait())
        await asyncio.wait({drained, second}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, second):
            task.cancel()
    finally:
        await box.close()
        if runner is not None:
            await stop_admin(runner)
        await control.stop()
    return 0


def _audit(entry: object) -> None:
    log.info("audit: %s", entry)


if __name__ == "__main__":
    # Threads of the data plane are over by now; leaving through os._exit would lose buffered output.
    sys.exit(main() or os.EX_OK)
