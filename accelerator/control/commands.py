"""The one table of accelctl's commands: the server dispatches by it, the command line is built from it, the help
prints it.

No I/O and no rendering may live here, and nothing that is slow to import: every start of accelctl reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from accelerator.errors import ControlError

# A page of `cache ls` of this many rows is about 3 MB of JSON, built on the control loop in about 20 ms.
LIST_LIMIT_MAX = 10_000
TOP_SORTS = ("traffic", "requests", "errors", "name")
TOP_LIMIT_MAX = 10_000
SORTS = ("url", "size", "age", "ttl")

# What a command may send besides text and numbers: (name, content) pairs of files.
Files = tuple[tuple[str, str], ...]
Value = str | int | float | bool | Files
FILES_MAX = 1000
# A policy of 1 MiB, each character escaped by JSON (at most three bytes for one of UTF-8), and its files' names.
POLICY_REQUEST_BYTES_MAX = 4 * 1024 * 1024
# 20,000 receivers at once, IPv6 with brackets and ports.
RECEIVERS_REQUEST_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True)
class Argument:
    """One argument. `is_local` ones never travel to the daemon: the command line itself acts on them. `is_sent` ones
    are not typed: the command line makes them. Kind "files": a list of [name, content]. `is_private`: no log
    may hold it."""

    name: str
    kind: Literal["text", "whole", "seconds", "switch", "files"]
    help: str
    is_positional: bool = False
    is_required: bool = False
    is_local: bool = False
    is_sent: bool = False
    is_private: bool = False
    choices: tuple[str, ...] = ()
    default: Value | None = None
    parameter: str = ""  # of the box's method, where it is called otherwise
    minimum: float = 0
    maximum: float = 2**53  # the largest whole number that every JSON reader keeps exact


@dataclass(frozen=True)
class Command:
    """One command. `name` is what is typed and what travels; `may_change`: only root and the daemon's own user may
    give it.

    `one_of`: exactly one of these arguments must be there; of `may_narrow` the second one narrows the first.
    `is_offline`: needs no daemon, never travels. `box_method`: the method of control.box.Box that answers it.
    `request_bytes_max`: of a request for it from a peer that may change; others, and other commands, have
    control.message's limit. `is_secret`: no log may hold its answer. `timeout_s`: how long its answer is awaited.
    """

    name: str
    help: str
    arguments: tuple[Argument, ...] = ()
    may_change: bool = False
    is_offline: bool = False
    one_of: tuple[str, ...] = ()
    may_narrow: tuple[str, str] = ("", "")
    box_method: str = ""
    request_bytes_max: int = 0
    is_secret: bool = False
    timeout_s: float = 30.0


_RECEIVERS = (
    Argument("name", "text", "the relay's name in the policy", is_positional=True, is_required=True),
    Argument("receivers", "text", "ADDRESS:PORT, or several with commas between them", is_positional=True,
             is_required=True, is_private=True),
)  # fmt: skip

COMMANDS: tuple[Command, ...] = (
    Command("status", "what runs: listeners, workers, policy, health", box_method="status"),
    Command(
        "top",
        "rates, refreshed each second; q or Ctrl-C leaves",
        (
            Argument(
                "once",
                "switch",
                "print one sample and leave (also with --json, or when the output is no terminal)",
                is_local=True,
            ),
            Argument(
                "interval",
                "seconds",
                "seconds between two samples (default 1)",
                is_local=True,
                default=1.0,
                minimum=0.1,
                maximum=3600,
            ),
            Argument(
                "sort",
                "text",
                "order of the origins: most traffic, requests or errors first, or by name (default traffic)",
                is_local=True,
                choices=TOP_SORTS,
                default="traffic",
            ),
            Argument("contains", "text", "only origins with this text in their names", is_local=True),
            Argument(
                "limit",
                "whole",
                f"origins at most, 1 to {TOP_LIMIT_MAX} (default 100; on a terminal no more than fit)",
                is_local=True,
                default=100,
                minimum=1,
                maximum=TOP_LIMIT_MAX,
            ),
        ),
        box_method="top",
    ),
    Command(
        "routes",
        "routes, rules, multicast: what is wanted of the kernel, what it has, what is missing",
        (Argument("dry-run", "switch", "only the steps that are left to do, as commands; does none", is_local=True),),
        box_method="routes",
    ),
    Command("relay ls", "datagram relays: signal, rates, loss, receivers", box_method="relay_list"),
    Command(
        "relay show",
        "one relay: inputs, outputs, every counter",
        (Argument("name", "text", "its name in the policy", is_positional=True, is_required=True),),
        box_method="relay_show",
    ),
    Command(
        "relay top",
        "relays, refreshed each second; q or Ctrl-C leaves",
        (
            Argument("once", "switch", "print one sample and leave (also with --json, or into a pipe)", is_local=True),
            Argument("interval", "seconds", "seconds between two samples (default 1)", is_local=True, default=1.0,
                     minimum=0.1, maximum=3600),
        ),
        box_method="relay_list",
    ),
    Command("relay playlist", "the groups that relays send to, as a playlist for players", box_method="relay_playlist"),
    Command(
        "relay add-receiver",
        "send a relay's stream to more receivers, until they are removed or acceleratord ends",
        _RECEIVERS,
        may_change=True,
        box_method="relay_add_receiver",
        request_bytes_max=RECEIVERS_REQUEST_BYTES_MAX,
    ),
    Command(
        "relay remove-receiver",
        "send a relay's stream no longer to receivers that were added",
        _RECEIVERS,
        may_change=True,
        box_method="relay_remove_receiver",
        request_bytes_max=RECEIVERS_REQUEST_BYTES_MAX,
    ),
    Command("cache stats", "requests, hits, bytes, memory since the start", box_method="cache_stats"),
    Command(
        "cache ls",
        "list the stored objects, a page at a time",
        (
            Argument("origin", "text", "only objects of this origin (its name in the policy)"),
            Argument("class", "text", "only objects of this class (its name in the policy)", parameter="class_name"),
            Argument("prefix", "text", "only objects whose URL begins so"),
            Argument("contains", "text", "only objects with this text in host or path, in capitals or not"),
            Argument(
                "sort",
                "text",
                "order: url, or the largest, oldest, longest-lived first (default url)",
                choices=SORTS,
                default="url",
            ),
            Argument(
                "limit",
                "whole",
                f"rows at most, 1 to {LIST_LIMIT_MAX} (default 100)",
                default=100,
                minimum=1,
                maximum=LIST_LIMIT_MAX,
            ),
            Argument("offset", "whole", "rows to skip (default 0)", default=0),
        ),
        box_method="cache_list",
    ),
    Command(
        "cache purge",
        "forget one URL (all its variants), all below a prefix, a whole origin, or all with a tag",
        (
            Argument("url", "text", "a URL as viewers write it", is_positional=True),
            Argument("prefix", "text", "forget every object whose URL begins so"),
            Argument("origin", "text", "forget every object of this origin; with --tag: only those with the tag"),
            Argument("tag", "text", "forget every object that its origin gave this tag (Cache-Tag, Surrogate-Key)"),
        ),
        may_change=True,
        one_of=("url", "prefix", "origin", "tag"),
        may_narrow=("tag", "origin"),
        box_method="cache_purge",
    ),
    Command(
        "cache erase",
        "make a class unreadable: out of memory, its key dropped, its records taken off the disk",
        (
            Argument("class", "text", "a class of the policy", is_positional=True, parameter="class_name"),
            Argument("unclassed", "switch", "what belongs to no class", parameter="is_unclassed"),
        ),
        may_change=True,
        one_of=("class", "unclassed"),
        box_method="cache_erase",
        timeout_s=3600.0,
    ),
    Command(
        "doctor",
        "look for what is in the way of video, and say what mends it; needs no daemon",
        (
            Argument("policy", "text", "this policy file or directory, not the one that runs", is_local=True),
            Argument("url", "text", "try this URL of viewers at its origin", is_local=True),
            Argument("listen", "seconds", "seconds to listen for multicast queries and streams (default 2; 0: don't)",
                     is_local=True, default=2.0, maximum=600),
            Argument("state-dir", "text", "the daemon's state directory (default: by the control socket)",
                     is_local=True),
            Argument("credentials", "text", "the directory of certificates (default: in the state directory)",
                     is_local=True),
        ),
        is_offline=True,
    ),
    Command(
        "steering test",
        "try a lane as a viewer would, from here, and say why it would fail; needs no daemon with --policy",
        (
            Argument("lane", "text", "hosts, prefix, proxy, document, connect or intercept", is_positional=True,
                     is_required=True, is_local=True,
                     choices=("connect", "document", "hosts", "intercept", "prefix", "proxy")),
            Argument("policy", "text", "this policy file or directory, not the one that runs", is_local=True),
            Argument("page", "text", "the page that has the player (default https://portal.example)", is_local=True),
            Argument("box", "text", "the box's address, in place of what names resolve to", is_local=True),
            Argument("url", "text", "one that the player loads, to see whether its page may read it", is_local=True),
            Argument("ca", "text", "PEM file of authorities that viewers trust besides the system's", is_local=True),
        ),
        is_offline=True,
    ),
    Command(
        "steering matrix",
        "every flow that firewalls have to let through, and why; needs no daemon with --policy",
        (
            Argument("policy", "text", "this policy file or directory, not the one that runs", is_local=True),
            Argument("format", "text", "text or csv (default text; --json for JSON)", is_local=True,
                     choices=("text", "csv"), default="text"),
        ),
        is_offline=True,
    ),
    Command(
        "steering recipes",
        "policy routing to the box for a router, with a health probe; needs no daemon with --policy",
        (
            Argument("router", "text", "the router's kind", is_positional=True, is_required=True, is_local=True,
                     choices=("cisco-ios-xe", "fortigate", "juniper", "linux", "mikrotik")),
            Argument("policy", "text", "this policy file or directory, not the one that runs", is_local=True),
            Argument("box", "text", "the box's address (default: as the policy says)", is_local=True),
            Argument("interface", "text", "the router's interface towards the viewers", is_local=True),
        ),
        is_offline=True,
    ),
    Command(
        "steering document",
        "print the content steering document, to be put on any web server; needs no daemon with --policy",
        (
            Argument("policy", "text", "this policy file or directory, not the one that runs", is_local=True),
            Argument("first", "text", "the URL of that document, absolute or relative: print the one for players' "
                     "first seconds, which sends them there", is_local=True),
        ),
        is_offline=True,
    ),
    Command(
        "steering pac",
        "print the proxy auto-configuration that browsers get; needs no daemon with --policy",
        (Argument("policy", "text", "this policy file or directory, not the one that runs", is_local=True),),
        is_offline=True,
    ),
    Command(
        "policy check",
        "check a policy file or directory; needs no daemon",
        (Argument("path", "text", "the file or directory", is_positional=True, is_required=True, is_local=True),),
        is_offline=True,
    ),
    Command(
        "csr",
        "make a key, unless it is there, and a signing request for a listener's certificate; needs no daemon",
        (
            Argument("name", "text", "as in listen.NAME.tls", is_positional=True, is_required=True, is_local=True),
            Argument("credentials", "text", "the directory for NAME.key and NAME.csr", is_required=True, is_local=True),
            Argument("policy", "text", "for the hosts of this policy's origins", is_local=True),
            Argument("host", "text", "for these hosts instead, separated by commas", is_local=True),
        ),
        is_offline=True,
    ),
    Command(
        "log verify",
        "check that no line of security logs was changed or taken out; needs no daemon",
        (Argument("path", "text", "a file, or the directory with all of them", is_positional=True, is_required=True,
                  is_local=True),),
        is_offline=True,
    ),
    Command("policy show", "print the running policy, whole, with every default", box_method="policy_show"),
    Command(
        "policy diff",
        "what would change, and what that means for viewers: the running policy against a file or directory",
        (Argument("path", "text", "the file or directory", is_positional=True, is_required=True, is_local=True),),
        is_offline=True,
    ),
    Command(
        "policy apply",
        "check a policy file or directory, and run it; it is withdrawn by itself where errors rise",
        (
            Argument("path", "text", "the file or directory", is_positional=True, is_required=True),
            Argument("force", "switch", "also where it was withdrawn before; then it stays whatever happens"),
            Argument("files", "files", "the policy's text", is_required=True, is_sent=True),
            Argument("folder", "text", "what relative file names in it start from", is_required=True, is_sent=True),
        ),
        may_change=True,
        box_method="policy_apply",
        request_bytes_max=POLICY_REQUEST_BYTES_MAX,
    ),
    Command("policy history", "policies that ran or were refused, what became of them", box_method="policy_history"),
    Command(
        "policy rollback",
        "return to the last policy that served well, or to one of the history",
        (Argument("to", "whole", "the number of a policy in the history", minimum=1, maximum=10**8 - 1),),
        may_change=True,
        box_method="policy_rollback",
    ),
    Command(
        "events",
        "what happened, why, and what to do: the latest, or each when it comes",
        (
            Argument("follow", "switch", "go on, an event when it comes; with --json one document a line"),
            Argument("since", "seconds", "only of the last so many seconds", maximum=10**9),
        ),
        box_method="event_list",
    ),
    Command(
        "admin token",
        "print the token that the dashboard asks for before it changes anything",
        may_change=True,
        box_method="admin_token_show",
        is_secret=True,
    ),
    Command("policy schema", "print the policy's JSON Schema; needs no daemon", is_offline=True),
)

BY_NAME: Mapping[str, Command] = {command.name: command for command in COMMANDS}


def parameters_of(command: Command, checked: Mapping[str, Value | None]) -> dict[str, Value | None]:
    """Arguments as the box's method calls them."""
    return {each.parameter or each.name: checked[each.name] for each in command.arguments if each.name in checked}


def check_arguments(command: Command, given: Mapping[str, object]) -> dict[str, Value | None]:
    """What the box's method gets: every argument that travels, defaults filled in, absent ones None.

    Raises ControlError("arguments") that names the first fault. Types are exact: `true` is no number, "5" is no number.
    """
    known = {argument.name: argument for argument in command.arguments if not argument.is_local}
    for name in given:
        if name not in known:
            raise _fault(command, f"unknown argument {name[:80]!r}")
    checked: dict[str, Value | None] = {}
    for name, argument in known.items():
        value = given.get(name)
        if value is None:
            if argument.is_required:
                raise _fault(command, f"{name} is missing")
            checked[name] = argument.default
        else:
            checked[name] = _checked(command, argument, value)
    if command.one_of:
        names = [name for name in command.one_of if checked[name] is not None and checked[name] is not False]
        n_given = len(names)
        if n_given != 1 and sorted(names) != sorted(command.may_narrow):
            raise _fault(command, f"exactly one of {', '.join(command.one_of)} is needed, {n_given} given")
    return checked


def _checked(command: Command, argument: Argument, value: object) -> Value:
    if argument.kind == "text":
        if not isinstance(value, str) or not value:
            raise _fault(command, f"{argument.name} must be a text that is not empty")
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
            raise _fault(command, f"{argument.name} holds control characters")
        if any("\ud800" <= character <= "\udfff" for character in value):
            # JSON can spell half a surrogate pair (RFC 8259 section 8.2), and argv holds them for bytes that are not
            # UTF-8.
            raise _fault(command, f"{argument.name} is not UTF-8")
        if argument.choices and value not in argument.choices:
            raise _fault(command, f"{argument.name} must be one of {', '.join(argument.choices)}")
        return value
    if argument.kind == "files":
        return _checked_files(command, argument, value)
    if argument.kind == "switch":
        if not isinstance(value, bool):
            raise _fault(command, f"{argument.name} must be true or false")
        return value
    wanted: tuple[type, ...] = (int,) if argument.kind == "whole" else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise _fault(command, f"{argument.name} must be a {'whole ' if argument.kind == 'whole' else ''}number")
    assert isinstance(value, int | float)
    if not argument.minimum <= value <= argument.maximum:
        raise _fault(command, f"{argument.name} must be from {argument.minimum:.15g} to {argument.maximum:.15g}")
    return value


def _checked_files(command: Command, argument: Argument, value: object) -> Files:
    if not isinstance(value, list) or not 1 <= len(value) <= FILES_MAX:
        raise _fault(command, f"{argument.name} must be a list of 1 to {FILES_MAX} files")
    files = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise _fault(command, f"{argument.name} must be a list of [name, content]")
        name, content = pair
        if not name or len(name) > 4096 or not name.isprintable():
            raise _fault(command, f"a name in {argument.name} is empty, too long, or holds control characters")
        if any("\ud800" <= character <= "\udfff" for character in content):
            raise _fault(command, f"{argument.name} is not UTF-8")
        files.append((name, content))
    return tuple(files)


def _fault(command: Command, message: str) -> ControlError:
    return ControlError("arguments", f"{command.name}: {message}", exit_code=2)
