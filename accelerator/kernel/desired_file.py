"""What services desired last, in a file, so that netd can begin with it. What is read is judged as what is said: the
disk is acceleratord's too, and may be torn, or of another version. What is done with it stands elsewhere."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from accelerator.kernel.checked import StateError
from accelerator.kernel.objects import check_routes, check_steered
from accelerator.kernel.shaped import check_shapers
from accelerator.kernel.state import GENERATION_MAX, DesiredState, check_multicast, decode, encode

# There is one today; who says so may be an acceleratord that somebody has taken over.
SERVICES_MAX = 8
# 100,000 routes need 14 to 24 MB.
FILE_BYTES_MAX = 64 << 20
_SERVICE_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")

Desired = dict[str, tuple[int, DesiredState]]


def check_said(service: object, generation: object) -> tuple[str, int]:
    """StateError: no service's name, or no generation."""
    if not isinstance(service, str) or not _SERVICE_NAME.fullmatch(service):
        raise StateError("value", "service is a short name in small letters")
    if isinstance(generation, bool) or not isinstance(generation, int) or not 0 <= generation <= GENERATION_MAX:
        raise StateError("value", f"generation is a number up to {GENERATION_MAX}")
    return service, generation


def check_together(states: Sequence[DesiredState]) -> None:
    """StateError: services are at odds."""
    check_multicast(states)
    check_routes(route for each in states for route in each.routes)
    check_steered([rule for each in states for rule in each.rules], (row for each in states for row in each.routes))
    check_shapers(tuple(row for each in states for row in each.shapers))


def read_desired(path: Path) -> Desired:
    """OSError, FileNotFoundError among them; StateError: not what write_desired() writes, whatever it is instead."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
            raise StateError("value", f"it is no file of at most {FILE_BYTES_MAX >> 20} MB")
        data = file.read(FILE_BYTES_MAX)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StateError("value", f"{error}") from None
    if not isinstance(document, dict) or len(document) > SERVICES_MAX:
        raise StateError("value", f"it doesn't say what at most {SERVICES_MAX} services desire")
    found: Desired = {}
    for name, said in document.items():
        if not isinstance(said, list) or len(said) != 2:
            raise StateError("value", "a service has a generation and a state")
        service, generation = check_said(name, said[0])
        found[service] = generation, decode(said[1])
    check_together([state for _, state in found.values()])
    return found


def write_desired(path: Path, services: Desired) -> None:
    """Whole or not at all. OSError: the disk doesn't take it."""
    document = {name: [generation, encode(state)] for name, (generation, state) in services.items()}
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
