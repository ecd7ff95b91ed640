"""accelctl: the command line, built from control.commands. No command's work is done here, and nothing slow is
imported early.

Exit codes: 0 done, 1 refused or problem found, 2 usage, 3 no daemon. Errors are one line on stderr; with --json
stdout holds one JSON document in any case but a usage error: the answer, or {"ok": false, "error": {"kind",
"message"}}.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from accelerator.control.client import ControlClient
from accelerator.control.commands import BY_NAME, COMMANDS, Argument, Command, check_arguments
from accelerator.control.text import printable
from accelerator.errors import AcceleratorError, ControlError, PolicyError

if TYPE_CHECKING:  # slow to import
    from pathlib import Path

    from accelerator.policy.model import Policy

# Checking 1 MiB of policy may take seconds, opening listeners and syncing to a slow disk too.
APPLY_TIMEOUT_S = 120.0
DEFAULT_SOCKET = "/run/accelerator/control.sock"
PACKAGED_STATE_DIR = "/var/lib/accelerator"
_EPILOG = "exit status: 0 done, 1 refused or problem found, 2 usage, 3 no daemon"
_GROUPS = {
    "admin": "the admin listener and its dashboard",
    "cache": "what is stored",
    "relay": "datagram streams and their receivers",
    "steering": "how viewers come to the box: try it, and what firewalls and routers need for it",
    "log": "what was written to disk", "policy": "check, compare, apply and take back policies",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    if sys.stdout is None:  # started with a closed stdout
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    defaults = argparse.Namespace(socket=os.environ.get("ACCELERATOR_SOCKET") or DEFAULT_SOCKET, json=False)
    options = _parser().parse_args(argv, defaults)
    try:
        code = _run(BY_NAME[options.command], options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # `accelctl cache ls | head`: nobody reads any more, and that is no error. The flush at exit must not complain
        # either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except AcceleratorError as error:
        return _fail(error, options)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(ControlError("system", what), options)
    except KeyboardInterrupt:
        return 130


def _run(command: Command, options: argparse.Namespace) -> int:
    if command.name == "policy check":
        return _policy_check(options.path, is_json=options.json)
    if command.name == "csr":
        return _csr(options)
    if command.name == "log verify":
        return _log_verify(options.path, is_json=options.json)
    if command.name == "doctor":
        return _doctor(options)
    if command.name.startswith("steering "):
        return _steering(command.name.removeprefix("steering "), options)
    if command.name == "policy schema":
        from accelerator.policy.schema import schema_text

        sys.stdout.write(schema_text())
        return 0
    if command.name == "top":
        return _top(options)
    if command.name == "relay top":
        return _relay_top(options)
    if command.name == "policy diff":
        return _policy_diff(options)
    if command.name == "policy apply":
        return _policy_apply(command, options)
    if command.name == "policy show" and not options.json:
        return _policy_show(options)
    if command.name == "events" and options.follow:
        return _follow(options)
    arguments = check_arguments(
        command,
        {
            each.name: getattr(options, each.name)
            for each in command.arguments
            if not each.is_local and getattr(options, each.name) is not None
        },
    )
    given = {name: value for name, value in arguments.items() if value is not None}
    with ControlClient(options.socket, timeout_s=command.timeout_s) as client:
        result = client.call(command.name, given)
    if command.name == "routes" and options.dry_run:
        from accelerator.control.display import what_waits

        kernel = result["kernel"]
        result = {"steps": kernel["steps"], "n_steps": kernel["n_steps"], "waits": what_waits(result)}
    if options.json:
        _print_json(result)
    else:
        from accelerator.control.display import show

        show(command.name, result, arguments)
    return 0


def _top(options: argparse.Namespace) -> int:
    if not (options.json or options.once) and sys.stdout.isatty():
        from accelerator.control.top import watch

        with contextlib.suppress(KeyboardInterrupt):
            watch(
                options.socket, interval_s=options.interval, sort=options.sort, contains=options.contains,
                limit=options.limit,
            )  # fmt: skip
        return 0
    from accelerator.control.rates import paged, rates

    with ControlClient(options.socket) as client:
        before = client.call("top")
    time.sleep(options.interval)
    with ControlClient(options.socket) as client:
        sample = rates(before, client.call("top"))
    sample = paged(sample, sort=options.sort, contains=options.contains, limit=options.limit)
    if options.json:
        _print_json(sample)
    else:
        from accelerator.control.display import make_console, top_page

        console = make_console()
        console.print(top_page(sample, width=console.width))
    return 0


def _relay_top(options: argparse.Namespace) -> int:
    """The daemon has the rates: each sample is one question."""
    if not (options.json or options.once) and sys.stdout.isatty():
        from accelerator.control.top import watch_relays

        with contextlib.suppress(KeyboardInterrupt):
            watch_relays(options.socket, interval_s=options.interval)
        return 0
    with ControlClient(options.socket) as client:
        sample = client.call("relay ls")
    if options.json:
        _print_json(sample)
    else:
        from accelerator.control.display import show

        show("relay ls", sample, {})
    return 0


def _log_verify(path: str, *, is_json: bool) -> int:
    from pathlib import Path

    from accelerator.protocols.hash_chain import first_break

    given = Path(path)
    files = sorted(given.glob("security-*.log")) if given.is_dir() else [given]
    problems = []
    for file in files:
        with file.open("rb") as lines:
            found = first_break(lines)
        if found is not None:
            problems.append({"file": str(file), "line": found[0], "message": found[1]})
            print(printable(f"{file}:{found[0]}: {found[1]}"), file=sys.stderr)
    if is_json:
        _print_json({"ok": bool(files) and not problems, "files": len(files), "problems": problems})
    elif not files:
        print(printable(f"accelctl: {path}: no security logs"), file=sys.stderr)
    elif not problems:
        print(f"{len(files)} files: ok")
    return 0 if files and not problems else 1


def _csr(options: argparse.Namespace) -> int:
    from pathlib import Path

    from accelerator.control.signing_request import make_request
    from accelerator.policy.check import check_policy

    hosts = [host.strip().lower() for host in (options.host or "").split(",") if host.strip()]
    if not hosts and options.policy:
        policy, problems = check_policy(Path(options.policy))
        if policy is None:
            raise PolicyError(problems)
        hosts = [host for origin in policy.origins.values() for host in origin.hosts if host != "*"]
    hosts = list(dict.fromkeys(hosts))
    if not hosts:
        raise ControlError("csr", "a certificate is for hosts: name a policy whose origins have some, or --host")
    if not all(host.isascii() and len(host) < 254 for host in hosts) or "/" in options.name:
        raise ControlError("csr", "hosts are written in ASCII (xn--…), and the name has no slash")
    made = make_request(options.name, Path(options.credentials), hosts)
    if options.json:
        _print_json({"key": str(made.key), "request": str(made.request), "hosts": hosts, "new_key": made.is_new_key})
    else:
        print(printable(f"{made.key}: {'new, ECDSA P-256' if made.is_new_key else 'kept'}"))
        print(printable(f"{made.request}: for {', '.join(hosts)}"))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    """Whoever asks looks for himself, with his own rights; the daemon, where it runs, says what only it knows."""
    from pathlib import Path

    from accelerator.doctor.run import Subject, examine
    from accelerator.doctor.text import report_lines

    if options.url and not options.url.startswith(("http://", "https://")):
        raise ControlError("url", "--url is what a viewer asks for: https://HOST/PATH", exit_code=2)
    policy, daemon = _policy_and_daemon(options, is_lenient=True)
    state_dir = Path(options.state_dir) if options.state_dir else _state_dir_of(options.socket)
    credentials = options.credentials or os.environ.get("CREDENTIALS_DIRECTORY")
    if not credentials and state_dir is not None:
        credentials = str(state_dir / "credentials")
    report = examine(Subject(
        policy, state_dir, Path(credentials) if credentials else None, daemon.get("status"), daemon.get("routes"),
        options.url or "", options.listen, daemon.get("why", ""), daemon.get("why_no_routes", ""),
    ))  # fmt: skip
    if options.json:
        _print_json(report.as_dict())
    else:
        for line in report_lines(report):
            print(printable(line))
    return 0 if report.is_ok else 1


def _steering(what: str, options: argparse.Namespace) -> int:
    from accelerator.steering.command import SteeringError, document_text, pac_text, run

    policy = _policy_and_daemon(options)[0]
    if policy is None:
        raise ControlError("no-daemon", "no acceleratord runs here: name the policy with --policy", exit_code=3)
    try:
        if what in ("document", "pac"):
            text = document_text(policy, options.first) if what == "document" else pac_text(policy)
            if what == "pac" and options.json:
                _print_json({"pac": text})
            else:
                sys.stdout.write(text)
            return 0
        document, lines, is_ok = run(what, policy, vars(options))
    except SteeringError as error:
        raise ControlError("steering", str(error)) from None
    if options.json:
        _print_json(document)
    else:
        for line in lines:
            print(printable(line))
    return 0 if is_ok else 1


def _policy_and_daemon(
    options: argparse.Namespace, *, is_lenient: bool = False
) -> tuple[Policy | None, dict[str, Any]]:
    """The policy that was named, else the one that runs; and what the daemon says, nothing where none runs. Lenient,
    for the doctor: nothing, and `why`, where it can't be asked for any other reason either; and what netd says."""
    from pathlib import Path

    from accelerator.policy.check import load_policy
    from accelerator.policy.model import Policy

    policy = load_policy(Path(options.policy)) if options.policy else None
    daemon: dict[str, Any] = {}
    try:
        with ControlClient(options.socket, timeout_s=10) as client:
            daemon["status"] = client.call("status")
            if policy is None:
                policy = Policy.model_validate(client.call("policy show")["policy"])
            if is_lenient:
                try:
                    daemon["routes"] = client.call("routes")
                except ControlError as error:  # accelerator-netd may not run
                    daemon["why_no_routes"] = str(error)
    except ControlError as error:
        if error.exit_code != 3 and not is_lenient:
            raise
        daemon["why"] = str(error)
    except ValueError as error:
        raise ControlError("protocol", "the daemon's policy is of another version: use its own accelctl") from error
    return policy, daemon


def _state_dir_of(socket_path: str) -> Path | None:
    """Where the daemon of a control socket keeps what it has: beside it, or where the package puts it."""
    from pathlib import Path

    if socket_path == DEFAULT_SOCKET:
        return Path(PACKAGED_STATE_DIR) if os.path.isdir(PACKAGED_STATE_DIR) else None
    return Path(socket_path).absolute().parent if os.path.exists(socket_path) else None  # False where it can't be seen


def _policy_check(path: str, *, is_json: bool) -> int:
    from pathlib import Path

    from accelerator.policy.check import check_policy

    policy, problems = check_policy(Path(path))
    is_ok = policy is not None and all(problem.is_warning for problem in problems)
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    if is_json:
        rows = [
            {
                "file": each.file,
                "line": each.line,
                "column": each.column,
                "message": each.message,
                "warning": each.is_warning,
            }
            for each in problems
        ]
        _print_json({"ok": is_ok, "problems": rows})
    elif is_ok:
        print(f"{printable(path)}: ok")
    return 0 if is_ok else 1


def _policy_diff(options: argparse.Namespace) -> int:
    """The file is read and checked here, with the rights and the folder of who asks; the daemon tells what runs."""
    from pathlib import Path

    from accelerator.policy.check import load_policy
    from accelerator.policy.diff import diff_policies
    from accelerator.policy.model import Policy

    new = load_policy(Path(options.path))
    with ControlClient(options.socket) as client:
        running = client.call("policy show")
    try:
        old = Policy.model_validate(running["policy"])
    except ValueError as error:
        raise ControlError("protocol", "the daemon's policy is of another version: use its own accelctl") from error
    found = diff_policies(old, new)
    if options.json:
        _print_json({**found.as_dict(), "needs_restart": found.needs_restart})
    else:
        from accelerator.control.display import show

        show("policy diff", found.as_dict(), {})
    return 0


def _policy_apply(command: Command, options: argparse.Namespace) -> int:
    """Sends the text, not its name: a daemon in a sandbox can't read everywhere, and what was checked is what runs."""
    from pathlib import Path

    from accelerator.policy.check import check_texts
    from accelerator.policy.load import read_files

    read = read_files(Path(options.path))
    problems = set(read.problems)
    if read.texts is not None:
        problems.update(check_texts(read.texts, read.folder)[1])
    wrong = [problem for problem in problems if not problem.is_warning]
    if wrong:
        raise PolicyError(tuple(sorted(problems)))
    for problem in sorted(problems):
        print(printable(problem), file=sys.stderr)
    given = {
        "path": os.path.abspath(options.path),
        "files": [[name, data.decode()] for name, data in read.texts or []],
        "folder": read.folder,
        "force": options.force,
    }
    check_arguments(command, given)
    with ControlClient(options.socket, timeout_s=APPLY_TIMEOUT_S) as client:
        result = client.call(command.name, given)
    if options.json:
        _print_json(result)
    else:
        from accelerator.control.display import show

        show(command.name, result, given)
    return 0


def _policy_show(options: argparse.Namespace) -> int:
    import yaml

    with ControlClient(options.socket) as client:
        running = client.call("policy show")
    yaml.safe_dump(running["policy"], sys.stdout, sort_keys=False, allow_unicode=False)
    return 0


def _follow(options: argparse.Namespace) -> int:
    from accelerator.control.text import event_line

    given = {"follow": True} if options.since is None else {"follow": True, "since": options.since}
    with contextlib.suppress(KeyboardInterrupt), ControlClient(options.socket) as client:
        for event in client.stream("events", given):
            if options.json:
                _print_json(event)
            else:
                print(event_line(event))
            sys.stdout.flush()
    return 0


def _print_json(document: Mapping[str, Any]) -> None:
    print(json.dumps(document, separators=(",", ":")))


def _fail(error: AcceleratorError, options: argparse.Namespace) -> int:
    if isinstance(error, PolicyError):
        for problem in error.problems:
            print(printable(problem), file=sys.stderr)
    else:
        print(f"accelctl: {printable(error.message)}", file=sys.stderr)
    if options.json:
        with contextlib.suppress(OSError):  # stdout may be what failed
            print(json.dumps({"ok": False, "error": {"kind": error.kind, "message": error.message}}), flush=True)
    return error.exit_code if isinstance(error, ControlError) else 1


class _Help(argparse.HelpFormatter):
    """Help whose lines never end within a name such as Cache-Tag or --prefix."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        import textwrap

        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """argparse, with its error on one line."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _Help, **named})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    # --socket and --json may stand before and after the command: SUPPRESS keeps the later parser from resetting what
    # the earlier one read. (Not set_defaults: it would change the actions that all parsers share.)
    anywhere = _Parser(add_help=False)
    anywhere.add_argument(
        "--socket",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help=f"control socket (default $ACCELERATOR_SOCKET, else {DEFAULT_SOCKET})",
    )
    anywhere.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    parser = _Parser(
        prog="accelctl",
        description="See and steer the video accelerator of this machine.",
        epilog=_EPILOG,
        parents=[anywhere],
        allow_abbrev=False,
    )
    top_level = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    groups: dict[str, Any] = {}
    for command in COMMANDS:
        group, _, leaf = command.name.rpartition(" ")
        if group and group not in groups:
            outer = top_level.add_parser(group, help=_GROUPS[group], description=_GROUPS[group], parents=[anywhere])
            groups[group] = outer.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
        inner = (groups[group] if group else top_level).add_parser(
            leaf, help=command.help, description=command.help, epilog=_EPILOG, parents=[anywhere], allow_abbrev=False
        )
        inner.set_defaults(command=command.name)
        for argument in command.arguments:
            if not argument.is_sent:
                _add(inner, argument)
    return parser


def _add(parser: argparse.ArgumentParser, argument: Argument) -> None:
    help_text = argument.help.replace("%", "%%")
    if argument.kind == "switch":
        parser.add_argument(f"--{argument.name}", action="store_true", help=help_text)
        return
    settings: dict[str, Any] = {"help": help_text, "default": argument.default, "type": _reader(argument)}
    if argument.choices:
        settings["choices"] = argument.choices
    else:
        settings["metavar"] = argument.name.upper()
    if argument.is_positional:
        parser.add_argument(argument.name, nargs=None if argument.is_required else "?", **settings)
    else:
        parser.add_argument(f"--{argument.name}", required=argument.is_required, **settings)


def _reader(argument: Argument) -> Callable[[str], object]:
    def whole(text: str) -> int:
        if (
            not (text.isascii() and text.isdigit() and len(text) < 17)
            or not argument.minimum <= int(text) <= argument.maximum
        ):
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is no whole number from {argument.minimum:.15g} to {argument.maximum:.15g}"
            )
        return int(text)

    def seconds(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not argument.minimum <= value <= argument.maximum:
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is no time from {argument.minimum:g} to {argument.maximum:g} seconds"
            )
        return value

    readers: dict[str, Callable[[str], object]] = {"text": str, "whole": whole, "seconds": seconds}
    return readers[argument.kind]


if __name__ == "__main__":
    sys.exit(main())
