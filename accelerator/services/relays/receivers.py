"""Receivers as operators write them for a relay: many at once, of which none may hold the control loop up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from accelerator.errors import ControlError
from accelerator.policy.relay_addresses import parse_receiver
from accelerator.services.relays.flow import Receiver

# Receivers that are looked at without a pause: some 10 ms, of a loop that has viewers' misses to answer.
CHUNK = 250
# Of one command: 20,000 addresses of IPv6 with their ports are less than 1 MiB.
ADDED_MAX = 20_000


async def parse_receivers(text: str) -> Sequence[Receiver]:
    """Raises ControlError for the first one that is none, by its number: refusals are logged, addresses aren't."""
    found: dict[Receiver, None] = {}
    for number, word in enumerate(text.split(","), 1):
        if number % CHUNK == 0:
            await asyncio.sleep(0)
        try:
            address = parse_receiver(word.strip())
        except ValueError:
            what = "is no single receiver's ADDRESS:PORT, such as 10.12.0.7:5004"
            raise ControlError("arguments", f"receiver {number} {what}", exit_code=2) from None
        found[address.host, address.port] = None
    if len(found) > ADDED_MAX:
        raise ControlError("arguments", f"at most {ADDED_MAX:,} receivers at once", exit_code=2)
    return list(found)
