"""acceleratord, the composition root: reads the command line, builds the box, hears signals. No rule lives here."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import pwd
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop
from aiohttp.web import ServerRunner

from accelerator import __version__, clock
from accelerator.control.commands import BY_NAME
from accelerator.control.server import AuditEntry, ControlServer, prepare_directory
from accelerator.control.text import printable
from accelerator.errors import AcceleratorError, PolicyError, Problem
from accelerator.io.credentials import Credentials
from accelerator.io.handover import HandOverError
from accelerator.policy import check_policy
from accelerator.policy.compile import compile_policy
from accelerator.policy.model import Policy
from accelerator.services.answers import Answers
from accelerator.services.appliance import Appliance
from accelerator.services.listeners.admin_token import TokenError, load_admin_token
from accelerator.services.listeners.sockets import open_listener
from accelerator.services.listeners.succession import ADMIN_NAME, Succession, SuccessorError
from accelerator.services.logs.events import Event, Events
from accelerator.services.logs.journal import JournalWriter, is_journal
from accelerator.services.logs.lines import Causes, LogWriter, about
from accelerator.services.logs.queries import without_queries
from accelerator.services.logs.security import KEPT_EVENTS, SecurityLog
from accelerator.services.rollout.history import History
from accelerator.services.rollout.rollout import Candidate, Rollout, StartChoice, choose_start
from accelerator.services.watch import Watch
from accelerator.web.admin import start_admin, stop_admin
from accelerator.web.dashboard import Audit

log = logging.getLogger("accelerator")
PR_SET_DUMPABLE = 4
# How long a viewer's idle connection may still be used once after a hand-over. Players ask every few seconds.
HAND_OVER_IDLE_S = 5.0
# What is left of the log is written for so long at the end.
LOG_END_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.check:
        return _check(options.policy)
    fd = sys.stderr.fileno()
    writer = JournalWriter(fd) if is_journal(os.environ, fd) else LogWriter(fd)
    writer.setFormatter(_OneLine("acceleratord: %(message)s"))
    logging.basicConfig(handlers=[writer], level=logging.INFO)
    try:
        return _run(options, writer)
    finally:
        writer.finish(LOG_END_S)


def _run(options: argparse.Namespace, writer: LogWriter) -> int:
    # Confidential video and keys are in memory: no core dump, no ptrace by others of this user.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(options, writer))
    except PolicyError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return 1
    except AcceleratorError as error:
        log.error("%s", error.message)
        return 1
    except OSError as fault:
        log.error("%s%s", fault.strerror or fault, f": {fault.filename}" if fault.filename else "")
        return 1


class _OneLine(logging.Formatter):
    """What strangers have a part in (origins' answers, file names) must not look like a line of ours."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n") if record.exc_info else [super().format(record)]
        return "\n".join(printable(without_queries(line)) for line in lines)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="acceleratord", description="Caches company video at a branch office.")
    parser.add_argument("--policy", type=Path, required=True, metavar="FILE_OR_DIR", help="the policy (YAML)")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="where the control socket and state are")
    parser.add_argument("--credentials", type=Path, metavar="DIR", help="where keys and certificates are")
    parser.add_argument(
        "--control-socket", type=Path, metavar="PATH", help="where accelctl connects (default STATE_DIR/control.sock)"
    )
    parser.add_argument(
        "--take-over", action="store_true", help="take the listening sockets of the one that runs there over; it drains"
    )
    parser.add_argument("--check", action="store_true", help="check the policy, and end")
    parser.add_argument("--version", action="version", version=f"acceleratord {__version__}")
    options = parser.parse_args(arguments)
    if not options.check and options.state_dir is None:
        parser.error("--state-dir is needed to run")
    return options


def _check(path: Path) -> int:
    policy, problems = check_policy(path)
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    return 0 if policy is not None else 1


def _credentials_directory(options: argparse.Namespace) -> Path:
    if options.credentials is not None:
        return Path(options.credentials)
    # Where systemd puts what LoadCredential= names.
    by_systemd = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(by_systemd or options.state_dir / "credentials")


def _log_all(problems: tuple[Problem, ...], level: int) -> None:
    for problem in problems:
        log.log(level, "%s", problem)


async def _serve(options: argparse.Namespace, writer: LogWriter) -> int:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_note_fault(Causes()))
    succession = Succession(options.state_dir, loop, os.environ, takes_over=options.take_over)
    prepare_directory(options.state_dir)
    events = Events()
    events.use_loop(loop)

    def note_fault(text: str) -> None:
        log.warning("policy history: %s", text)
        events.note("history-fault", text, why="the history of policies is incomplete", cause="history")

    def note_fault_from_thread(text: str) -> None:
        loop.call_soon_threadsafe(note_fault, text)

    history = History(options.state_dir / "policies", note_fault_from_thread)
    history.load()
    choice = choose_start(options.policy, history)
    if not choice.candidates:
        raise PolicyError(choice.problems)
    _log_all(choice.problems, logging.WARNING)
    security = _open_security_log(options.state_dir, choice.candidates[0].policy, events)
    try:
        return await _serve_with(options, writer, succession, history, choice, events, security)
    finally:
        security.finish(LOG_END_S)


def _open_security_log(state_dir: Path, policy: Policy, events: Events) -> SecurityLog:
    kept = compile_policy(policy).logs
    security = SecurityLog(
        state_dir / "logs", retention_s=kept.security_retention_s, bytes_max=kept.security_bytes, events=events
    )

    def told(event: Event) -> None:
        if event.kind in KEPT_EVENTS:
            security.note(event.kind, event.what, why=event.why)

    events.on_told = told
    return security


async def _serve_with(
    options: argparse.Namespace,
    writer: LogWriter,
    succession: Succession,
    history: History,
    choice: StartChoice,
    events: Events,
    security: SecurityLog,
) -> int:
    loop = asyncio.get_running_loop()
    box = _make_box(choice.candidates[0], options, loop, events, succession, security)
    answers = Answers(box)
    ending = asyncio.Event()
    at_once = asyncio.Event()
    heir: list[frozenset[str]] = []  # the listeners that a successor serves on

    def end() -> None:
        (at_once if ending.is_set() else ending).set()

    def reload() -> None:
        if box.rollout is not None:
            box.rollout.reload()
        else:
            log.error("policy refused, the running one stays: this acceleratord has not started yet, or is ending")

    async def start_successor() -> None:
        arguments = [argument for argument in sys.orig_argv[1:] if argument != "--take-over"]
        try:
            await succession.start_successor([sys.executable, *arguments, "--take-over"])
        except SuccessorError as error:
            log.error("no upgrade: %s", error.message)

    upgrades: set[asyncio.Task[None]] = set()

    def upgrade() -> None:
        task = loop.create_task(start_successor())
        upgrades.add(task)
        task.add_done_callback(upgrades.discard)

    def leave(listeners: frozenset[str]) -> None:
        heir.append(listeners)
        ending.set()

    # Before anybody can know that we run: a reload that comes too early must not end the process.
    loop.add_signal_handler(signal.SIGTERM, end)
    loop.add_signal_handler(signal.SIGINT, end)
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGUSR2, upgrade)
    control_path = options.control_socket or options.state_dir / "control.sock"
    control = ControlServer(answers, control_path, audit=_audit(security))
    control.refused = lambda text, uid: security.refused("control", text, viewer=f"uid {uid}")
    runner: ServerRunner | None = None
    watch: Watch | None = None
    try:
        await succession.begin()
        await control.start(is_hidden=options.take_over)
        candidate = choice.candidates[0]
        for following in (*choice.candidates[1:], None):
            try:
                runner, admin = await _open(box, answers, options, control, writer, succession, security)
                break
            except AcceleratorError as error:
                if following is None:
                    raise
                log.error("%s", error.message)
                candidate = replace(following, warning=f"{error.message}: {following.warning}")
                await box.close()
                box = _make_box(candidate, options, loop, events, succession, security)
                control.box = answers = Answers(box)
        try:
            await succession.take()
        except HandOverError:
            # It has accepted from the shared sockets already, and whom it accepted is answered.
            await box.drain("the other one serves on", kept=box.listening_sockets(), idle_s=HAND_OVER_IDLE_S)
            raise
        box.begin_relays()
        succession.offer(box, admin, leave)
        control.show()
        rollout = Rollout(box, options.policy, history, events, candidate)
        await rollout.begin()
        watch = Watch(box.dataplane, answers.pulse, rollout, events, loop)
        watch.start()
        rollout.on_reload = succession.on_reload
        box.rollout = rollout
        for row in answers.status()["listeners"]:
            log.info(
                "serving viewers on %s (%s)", row["address"], row["name"],
                extra=about(event="listening", listener=row["name"]),
            )  # fmt: skip
        security.note(
            "take-over" if options.take_over else "start", f"acceleratord {__version__} serves",
            pid=os.getpid(), uid=os.geteuid(), policy=box.tables.digest[:12],
        )  # fmt: skip
        succession.serve(box, f"{__version__}, {len(box.tables.listeners)} listeners")
        await ending.wait()
        log.info("draining", extra=about(event="drain"))
        succession.ending(box.tables.limits.drain_s, is_left=bool(heir))
        if heir and runner is not None:
            await stop_admin(runner)
            runner = None
        # What goes wrong while it ends speaks against no policy.
        watch.stop()
        await rollout.end()
        if heir:
            drain = box.drain("another acceleratord has taken over", kept=heir[0], idle_s=HAND_OVER_IDLE_S)
        elif succession.keeps_sockets:
            drain = box.drain(kept=box.listening_sockets())
        else:
            drain = box.drain()
        drained = asyncio.ensure_future(drain)
        second = asyncio.ensure_future(at_once.wait())
        await asyncio.wait({drained, second}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, second):
            task.cancel()
    finally:
        if box.rollout is not None:
            security.note("stop", f"acceleratord {__version__} ends", pid=os.getpid())
        if watch is not None:
            watch.stop()
        if box.rollout is not None:
            await box.rollout.end()
        await box.close()
        if runner is not None:
            await stop_admin(runner)
        await control.stop(is_left=bool(heir))
        succession.end()
    return 0


def _make_box(
    candidate: Candidate,
    options: argparse.Namespace,
    loop: asyncio.AbstractEventLoop,
    events: Events,
    succession: Succession,
    security: SecurityLog,
) -> Appliance:
    credentials = Credentials(_credentials_directory(options))
    return Appliance(
        candidate.policy, options.policy, options.state_dir, loop, credentials, events, succession, security
    )


async def _open(
    box: Appliance, answers: Answers, options: argparse.Namespace, control: ControlServer, writer: LogWriter,
    succession: Succession, security: SecurityLog,
) -> tuple[ServerRunner | None, socket.socket | None]:
    """Opens the admin listener and the viewers'. Raises AcceleratorError, and leaves no admin listener then."""
    admin = None
    if box.tables.admin is not None:
        host, port = box.tables.admin
        try:
            admin = succession.adopt(ADMIN_NAME, host, port) or open_listener(host, port)
        except OSError as fault:
            raise AcceleratorError("listen", f"admin: {host}:{port}: {fault.strerror}") from fault
        box.admin_address = (host, admin.getsockname()[1])
        try:
            box.admin_token = load_admin_token(_credentials_directory(options), options.state_dir)
        except TokenError as error:
            log.error("%s: nothing can be changed by the dashboard", error.message)
    box.extra_counters = lambda: {
        **control.counters(),
        "security_log_dropped": (security.n_dropped, "entries of the security log lost: it couldn't be written"),
        "log_lines_dropped": (writer.n_dropped, "log lines lost because nobody took them"),
    }
    try:
        box.start()
    except BaseException:
        if admin is not None:
            admin.close()
        raise
    # It answers only now: who takes over shares the address with one that is well, and must not say that it isn't.
    if admin is None:
        return None, None
    token = box.admin_token.text if box.admin_token is not None else None
    runner, _ = await start_admin(
        answers, host, port, admin, token=token, reads_freely=box.tables.admin_reads_freely,
        audit=_audit_dashboard(security),
    )  # fmt: skip
    return runner, admin


def _audit(security: SecurityLog) -> Callable[[AuditEntry], None]:
    """Who changed what, in both logs."""

    def audit(entry: AuditEntry) -> None:
        what = _what(entry.command, entry.arguments)
        log.info(
            "audit: uid %d, pid %d: %s: %s %s", entry.uid, entry.pid, what, entry.outcome, entry.detail,
            extra=about(event="command", command=entry.command, outcome=entry.outcome, uid=str(entry.uid)),
        )  # fmt: skip
        security.note(
            "command", what, outcome=entry.outcome, uid=entry.uid, pid=entry.pid, user=_user_name(entry.uid),
            detail=entry.detail,
        )  # fmt: skip

    return audit


def _audit_dashboard(security: SecurityLog) -> Audit:
    """The same for the dashboard: who has the admin token is not known further."""

    def audit(command: str, arguments: Mapping[str, object], outcome: str, detail: str) -> None:
        what = _what(command, arguments)
        log.info("audit: dashboard: %s: %s %s", what, outcome, detail)
        security.note("dashboard", what, outcome=outcome, detail=detail)

    return audit


def _what(command: str, arguments: Mapping[str, object]) -> str:
    """Queries are left out: they hold viewers' credentials. So are addresses: how many there are stays."""
    words = [command]
    private = {each.parameter or each.name for each in BY_NAME[command].arguments if each.is_private} if (
        command in BY_NAME
    ) else set()  # fmt: skip
    for name, value in arguments.items():
        if name in private and value is not None:
            words.append(f"{name} ({str(value).count(',') + 1})")
        elif value is not None:
            words.append(f"{name} {without_queries(str(value))}")
    return " ".join(words)


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _note_fault(causes: Causes) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Faults of ours that the loop hears of: where it was, and neither values nor a line for each request."""

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        place = ""
        if fault is not None:
            frames = traceback.extract_tb(fault.__traceback__)
            where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
            place = f": {type(fault).__name__}{where}"
        cause = f"{context.get('message', 'fault')}{place}"
        end = causes.due(cause, clock.monotonic_ns())
        if end is not None:
            log.error("internal fault: %s%s", cause, end)

    return note


if __name__ == "__main__":
    # Threads of the data plane are over by now; leaving through os._exit would lose buffered output.
    sys.exit(main() or os.EX_OK)
