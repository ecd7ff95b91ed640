"""How a policy gets to run: at the start, by SIGHUP, `policy apply`, `policy rollback`, and back when it hurts.

One at a time, each kept in the history and told as an event. How a policy is put to work is the appliance's matter,
when it hurts protocols.probation's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from accelerator import clock
from accelerator.errors import AcceleratorError, ControlError, PolicyError, Problem
from accelerator.policy.check import check_texts
from accelerator.policy.compile import digest_of
from accelerator.policy.diff import Diff, diff_policies
from accelerator.policy.load import Files, read_files
from accelerator.policy.model import Policy
from accelerator.protocols.probation import Changed, Counts, Judgement, Outcome, Probation
from accelerator.services.logs.lines import about
from accelerator.services.rollout.history import Entry, History, source_digest
from accelerator.services.rollout.tally import counts_of

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane
    from accelerator.policy.compile import Tables
    from accelerator.services.logs.events import Events
    from accelerator.services.origins.origins import Origins

log = logging.getLogger("accelerator")

T = TypeVar("T")
_BY_WORDS = {
    "start": "at the start", "reload": "by SIGHUP", "apply": "by accelctl", "rollback": "by a rollback",
    "withdrawal": "in place of one that hurt",
}  # fmt: skip
_FORCE = "if it must be: accelctl policy apply PATH --force"


def one_line(error: AcceleratorError) -> str:
    """What is wrong, for a place that has one line: of a policy the first problems."""
    if not isinstance(error, PolicyError):
        return error.message
    wrong = [str(problem) for problem in error.problems if not problem.is_warning]
    return "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")


@dataclass(frozen=True)
class Candidate:
    """A policy that the daemon may start with. `warning`: why it is not the one that --policy names; "" if it is."""

    policy: Policy
    files: list[tuple[str, bytes]]
    folder: str
    path: str
    file_digest: str
    entry: Entry | None = None
    warning: str = ""


@dataclass(frozen=True)
class StartChoice:
    """What to start with, in order: the next where one can't be started with. `problems`: of --policy's."""

    candidates: list[Candidate]
    problems: tuple[Problem, ...]


def choose_start(path: Path, history: History) -> StartChoice:
    """--policy's own, unless an operator applied another since it was written, or it is quarantined, or broken: then
    the one that ran, then the last good one."""
    read = read_files(path)
    policy, problems = _checked(read)
    files = read.texts or []
    digest = source_digest(files)
    found: list[Candidate] = []
    reason = ""
    running = history.running
    if running is not None and running.by in ("apply", "rollback", "withdrawal") and running.file_digest == digest:
        # The newest word wins: the file is older than what was applied. It isn't a fault, so it is no warning either.
        _add(found, running, digest, "")
    if policy is None:
        reason = f"{path} is refused ({len([each for each in problems if not each.is_warning])} problems)"
    else:
        withdrawn = history.quarantine(digest_of(policy), digest)
        if withdrawn is None:
            found.append(Candidate(policy, files, read.folder, str(path), digest))
            reason = f"{path} could not be started with"
        else:
            reason = f"{path} is the policy that was withdrawn: {withdrawn.reason}"
    for entry in (history.last_good(), history.last_applied()):
        if entry is not None and all(entry is not each.entry for each in found):
            _add(found, entry, digest, f"{reason}: running on policy {entry.number} of the history")
    if policy is not None and not found:
        # Quarantined, with nothing to go back to: a policy that hurts serves more than none.
        found.append(Candidate(policy, files, read.folder, str(path), digest, warning=reason))
    return StartChoice(found, problems)


def _add(found: list[Candidate], entry: Entry, file_digest: str, warning: str) -> None:
    policy, _ = check_texts(entry.texts, entry.folder)
    if policy is not None:
        found.append(Candidate(policy, entry.texts, entry.folder, entry.path, file_digest, entry, warning))


def _checked(read: Files) -> tuple[Policy | None, tuple[Problem, ...]]:
    if read.texts is None:
        return None, tuple(read.problems)
    policy, problems = check_texts(read.texts, read.folder)
    everything = tuple(sorted({*problems, *read.problems}))
    is_refused = not read.are_all_read or any(not problem.is_warning for problem in everything)
    return (None if is_refused else policy), everything


class Running(Protocol):
    """The appliance, as far as policies are rolled out to it."""

    policy: Policy
    tables: Tables
    generation: int
    dataplane: DataPlane
    origins: Origins

    def apply(self, policy: Policy) -> int: ...


class Rollout:
    """Of one running appliance. `path` is what --policy names."""

    def __init__(self, box: Running, path: Path, history: History, events: Events, started: Candidate) -> None:
        self.history = history
        self.probation = Probation()
        self.warning = started.warning
        self.on_reload: Callable[[bool], None] = lambda _: None  # True: one begins, False: it is over
        self._box = box
        self._path = path
        self._events = events
        self._lock = asyncio.Lock()
        self._is_reload_waiting = False
        self._is_ended = False
        self._tasks: set[asyncio.Task[Any]] = set()
        # Checking and syncing to disk take time that the loop has not: one thread, so that one comes after another.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._file_digest = started.file_digest
        self._entry: Entry | None = started.entry
        self._predecessor: Entry | None = None
        self._predecessor_did_well = False
        self._is_forced = False
        self._started = started

    async def begin(self) -> None:
        """The box has started: the history and the judge begin with its policy."""
        running = self.history.running
        digest = self._box.tables.digest
        if running is None or running.digest != digest:
            entry = self._started.entry
            self._predecessor = running
            self._entry = await self._in_thread(
                partial(
                    self.history.add,
                    at_s=clock.wall_s(), by="start", outcome="applied", digest=digest, path=self._started.path,
                    folder=self._started.folder, files=self._started.files, file_digest=self._file_digest,
                    reason=self.warning, restores=entry.position if entry is not None else None,
                )
            )  # fmt: skip
        else:
            self._entry = running
        if self._entry is None or self._entry.outcome != "good":
            self.probation.applied(Changed(), self._counts(), _now_s())
        if self.warning:
            log.error("%s", self.warning)
            self._events.note(
                "policy-fallback", self.warning, why="a box that serves with an older policy beats one that is down",
                advice="correct the policy, check it with accelctl policy check, then send SIGHUP",
            )  # fmt: skip

    async def end(self) -> None:
        """Judges and takes over nothing any more; what is being written is written."""
        self._is_ended = True
        self.probation.end()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown()

    # -- ways in -------------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """SIGHUP: reads --policy's file again. Several at once are one."""
        if not self._is_reload_waiting and not self._is_ended:
            self._is_reload_waiting = True
            self._spawn(self._announced_reload())

    async def _announced_reload(self) -> None:
        self.on_reload(True)
        try:
            await self._reload()
        finally:
            self.on_reload(False)

    async def _reload(self) -> None:
        async with self._lock:
            self._is_reload_waiting = False
            read = await self._in_thread(lambda: read_files(self._path))
            self._file_digest = source_digest(read.texts or [])
            try:
                await self._take(read, str(self._path), "reload", is_forced=False)
            except PolicyError as error:
                for problem in error.problems:
                    log.error("%s", problem)
                log.error("policy refused, the running one stays")
            except AcceleratorError as error:
                log.error("policy refused, the running one stays: %s", error.message)

    async def apply(self, files: Sequence[tuple[str, str]], folder: str, path: str, *, force: bool) -> dict[str, Any]:
        """`policy apply`: the text that an operator sent. Raises PolicyError, StartError, ControlError."""
        texts = [(name, text.encode()) for name, text in files]
        async with self._lock:
            await self._read_file_digest()
            return await self._take(Files(texts, folder, [], True), path, "apply", is_forced=force)

    async def rollback(self, number: int | None) -> dict[str, Any]:
        """To an entry of the history, by default the newest good one before the running one. Raises ControlError."""
        async with self._lock:
            target = self._rollback_target(number)
            await self._read_file_digest()
            read = Files(target.texts, target.folder, [], True)
            answer = await self._take(
                read, target.path, "rollback", is_forced=number is not None, restores=target.position
            )
            return {**answer, "restored": target.number, "was_good": target.outcome == "good"}

    def _rollback_target(self, number: int | None) -> Entry:
        if number is not None:
            target = self.history.get(number)
            if target is None:
                raise ControlError("no-such-entry", f"the history has no policy {number}")
            if not target.digest:
                raise ControlError("refused", f"policy {number} was refused: it never was one that can run")
            return target
        digest = self._box.tables.digest
        before = self._entry.position if self._entry is not None else None
        target = self.history.last_good(before=before, but=digest) or self.history.last_applied(
            before=before, but=digest
        )
        if target is None:
            raise ControlError("no-older-policy", "the history has no policy older than the running one")
        return target

    async def _judged(self, judgement: Judgement, entry: Entry | None) -> None:
        async with self._lock:
            if entry is None or entry is not self._entry:
                return  # another one runs by now
            if judgement.outcome is Outcome.GOOD:
                self._entry = await self._in_thread(lambda: self.history.mark(entry, "good", judgement.reason))
                self._events.note("policy-good", f"policy {entry.number} proved good", why=judgement.reason)
                return
            if self._is_forced:
                self._tell_hurts(entry, judgement.reason, "it was applied by force, and stays")
            else:
                await self._withdraw(entry, judgement.reason)

    def _tell_hurts(self, entry: Entry, reason: str, what: str) -> None:
        self._events.note(
            "policy-hurts", f"policy {entry.number} hurts: {what}", why=reason,
            advice="accelctl policy rollback, or correct it and accelctl policy apply PATH",
        )  # fmt: skip
        log.error("policy %d hurts: %s: %s", entry.number, what, reason)

    async def _withdraw(self, entry: Entry, reason: str) -> None:
        for target in self._targets(entry):
            policy, _ = await self._in_thread(partial(check_texts, target.texts, target.folder))
            if policy is None:
                continue
            try:
                self._publish(policy)
            except AcceleratorError as error:
                log.error("policy %d can't be returned to: %s", target.number, error.message)
                continue
            break
        else:
            self._tell_hurts(entry, reason, "there is none to return to")
            return
        self._predecessor = None
        await self._in_thread(lambda: self.history.mark(entry, "withdrawn", reason))
        self._entry = await self._in_thread(
            partial(
                self.history.add,
                at_s=clock.wall_s(), by="withdrawal", outcome="applied", digest=self._box.tables.digest,
                path=target.path, folder=target.folder, files=target.texts, file_digest=self._file_digest,
                reason=f"in place of policy {entry.number}: {reason}", restores=target.position,
            )
        )  # fmt: skip
        self.warning = f"policy {entry.number} was withdrawn ({reason}): running on policy {target.number}"
        self._events.note(
            "policy-withdrawn", f"policy {entry.number} was withdrawn, policy {target.number} runs again", why=reason,
            advice=f"the same policy is refused from now on: correct it, or {_FORCE}",
        )  # fmt: skip
        log.error(
            "policy %d withdrawn, policy %d runs again: %s", entry.number, target.number, reason,
            extra=about(event="policy-withdrawn", policy=str(target.number)),
        )  # fmt: skip

    def _targets(self, entry: Entry) -> list[Entry]:
        """Where to go back to: what the comparison was with, if that had done well; else the last good one."""
        before = self._predecessor
        if before is not None and self.history.quarantine(before.digest, before.source_digest) is not None:
            before = None
        found = [
            before if self._predecessor_did_well else None,
            self.history.last_good(but=entry.digest),
            before,
            self.history.last_applied(but=entry.digest),
        ]
        return list({each.number: each for each in found if each is not None and each.digest != entry.digest}.values())

    # -- taking over ---------------------------------------------------------------------------------------------------

    async def _take(
        self, read: Files, path: str, by: str, *, is_forced: bool, restores: int | None = None
    ) -> dict[str, Any]:
        """Check, compare, publish, keep. Raises PolicyError, StartError, ControlError; then the running one stays."""
        policy, problems = await self._in_thread(lambda: _checked(read))
        source = source_digest(read.texts or [])
        digest = ""
        try:
            if policy is None:
                raise PolicyError(problems)
            for problem in problems:
                log.warning("%s", problem)
            digest = digest_of(policy)
            withdrawn = None if is_forced else self.history.quarantine(digest, source)
            if withdrawn is not None and digest != self._box.tables.digest:
                what = f"this policy was withdrawn as policy {withdrawn.number} ({withdrawn.reason})"
                raise ControlError("quarantined", f"{what}; {_FORCE}")
            diff = self._publish(policy)
        except AcceleratorError as error:
            await self._refused(read, path, by, digest, error)
            raise
        generation = self._box.generation
        if diff or self._entry is None:
            self._predecessor = self._entry
            self._entry = await self._in_thread(
                partial(
                    self.history.add,
                    at_s=clock.wall_s(), by=by, outcome="applied", digest=digest, path=path, folder=read.folder,
                    files=read.texts or [], file_digest=self._file_digest, restores=restores,
                )
            )  # fmt: skip
        self.warning = ""
        self._is_forced = is_forced and by == "apply"
        number = self._entry.number
        changes = f"{len(diff.changes)} changes" if diff else "nothing changes"
        self._events.note(
            "policy-rolled-back" if by == "rollback" else "policy-applied",
            f"policy {number} runs, generation {generation}", why=f"{_BY_WORDS[by]}: {changes}",
            advice="accelctl policy rollback returns to the one before" if diff else "", cause=f"policy {by}",
        )  # fmt: skip
        log.info(
            "policy taken over, generation %d", generation,
            extra=about(event="policy-applied", policy=str(number), generation=str(generation)),
        )  # fmt: skip
        return {"generation": generation, "digest": digest, "number": number, **diff.as_dict()}

    def _counts(self) -> Counts:
        return counts_of(self._box.dataplane, self._box.origins)

    def look(self) -> None:
        """Once a second: the judge is shown the counters, and what it says of the running policy is done."""
        judgement = self.probation.observe(self._counts(), _now_s())
        if judgement is not None and not self._is_ended:
            self._spawn(self._judged(judgement, self._entry))

    def _publish(self, policy: Policy) -> Diff:
        """Puts it to work; the judge begins anew where anything changed."""
        before = self._box.policy
        self._box.apply(policy)
        diff = diff_policies(before, policy)
        if diff:
            self._predecessor_did_well = not self.probation.is_judging or self.probation.does_well
            self.probation.applied(Changed(diff.origins, diff.has_limits), self._counts(), _now_s())
        return diff

    async def _refused(self, read: Files, path: str, by: str, digest: str, error: AcceleratorError) -> None:
        reason = one_line(error)
        self._events.note(
            "policy-refused", f"policy of {path} refused, the running one stays", why=reason,
            advice="accelctl policy check PATH" if isinstance(error, PolicyError) else "", cause=f"refused {by}",
        )  # fmt: skip
        if read.texts is not None:
            await self._in_thread(
                partial(
                    self.history.add,
                    at_s=clock.wall_s(), by=by, outcome="refused", digest=digest, path=path, folder=read.folder,
                    files=read.texts, file_digest=self._file_digest, reason=reason,
                )
            )  # fmt: skip

    async def _read_file_digest(self) -> None:
        read = await self._in_thread(lambda: read_files(self._path))
        self._file_digest = source_digest(read.texts or [])

    # -- what operators are shown --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For `status`: which entry runs, whether it has proved good, and what keeps the judge from saying so."""
        entry = self._entry
        return {
            "number": entry.number if entry is not None else None,
            "outcome": entry.outcome if entry is not None else None,
            "judging": self.probation.is_judging,
            "hold": self.probation.hold,
        }

    def show(self) -> dict[str, Any]:
        """The running policy, whole, as a policy writes it."""
        return {
            "generation": self._box.generation,
            "digest": self._box.tables.digest,
            "policy": self._box.policy.model_dump(mode="json", by_alias=True),
        }

    def text(self, number: int | None) -> dict[str, Any]:
        """The text of an entry of the history, by default of the running one. Raises ControlError("no-such-entry")."""
        entry = self._entry_of(number)
        return {
            **entry.summary(),
            "running": self._entry is not None and entry.number == self._entry.number,
            "files": [{"name": name, "text": text} for name, text in entry.files],
        }

    async def compare(self, number: int | None, to: int | None) -> dict[str, Any]:
        """What an entry (the running one) changed in meaning: against `to`, by default the policy that ran before it.

        Raises ControlError, PolicyError where one of them is no policy (any more)."""
        new = self._entry_of(number)
        if to is not None:
            old = self._entry_of(to)
        else:
            ran = [each for each in self.history.entries if each.outcome != "refused" and each.number < new.number]
            if not ran:
                raise ControlError("no-older-policy", "the history has no policy before this one")
            old = ran[-1]

        def diff() -> Diff:
            policies = []
            for entry in (old, new):
                policy, problems = check_texts(entry.texts, entry.folder)
                if policy is None:
                    raise PolicyError(problems)
                policies.append(policy)
            return diff_policies(*policies)

        found = await self._in_thread(diff)
        return {"from": old.number, "to": new.number, "needs_restart": found.needs_restart, **found.as_dict()}

    def _entry_of(self, number: int | None) -> Entry:
        entry = self._entry if number is None else self.history.get(number)
        if entry is None:
            raise ControlError("no-such-entry", "the history has no such policy")
        return entry

    def listing(self) -> dict[str, Any]:
        """The history, newest first."""
        running = self._entry.number if self._entry is not None else None
        return {
            "running": running,
            "entries": [
                {**entry.summary(), "running": entry.number == running} for entry in reversed(self.history.entries)
            ],
        }

    # -- threads and tasks ---------------------------------------------------------------------------------------------

    async def _in_thread(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _now_s() -> float:
    return clock.monotonic_ns() / 1e9
