"""The project's errors: each knows its kind, its source and whether a retry can help."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Source(Enum):
    """Who caused an error: decides the status that a viewer sees and which counter moves."""

    VIEWER = "viewer"
    ORIGIN = "origin"
    POLICY = "policy"
    OPERATOR = "operator"
    INTERNAL = "internal"


class AcceleratorError(Exception):
    """Base of all our errors. `kind` is a short stable token, `message` one clear line for a person."""

    source: Source = Source.INTERNAL

    def __init__(self, kind: str, message: str, *, can_retry: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.can_retry = can_retry


@dataclass(frozen=True, order=True)
class Problem:
    """One problem of a policy, at one place. `line` and `column` count from 1; 0 means that there is no place."""

    file: str
    line: int
    column: int
    message: str
    is_warning: bool = False

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {'warning: ' if self.is_warning else ''}{self.message}"


class PolicyError(AcceleratorError):
    """A policy that is refused: all its problems at once."""

    source = Source.POLICY

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("policy", "\n".join(str(problem) for problem in problems))
        self.problems = problems


class OriginError(AcceleratorError):
    """An origin that failed us. `status` is what a viewer gets: 502 bad or refused, 504 timed out."""

    source = Source.ORIGIN

    def __init__(self, kind: str, message: str, *, status: int = 502, can_retry: bool = False) -> None:
        super().__init__(kind, message, can_retry=can_retry)
        self.status = status


class ControlError(AcceleratorError):
    """A control command that is refused. `exit_code` is that of accelctl: 1 refused, 2 usage, 3 no daemon."""

    source = Source.OPERATOR

    def __init__(self, kind: str, message: str, *, exit_code: int = 1) -> None:
        super().__init__(kind, message)
        self.exit_code = exit_code
