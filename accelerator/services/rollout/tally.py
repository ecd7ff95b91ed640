"""The box's counters as the judge of policies reads them. Judges nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerator.protocols.probation import Counts, OriginCounts

if TYPE_CHECKING:
    from accelerator.dataplane import DataPlane
    from accelerator.services.origins.origins import Origins

# Own refusals that a policy's hosts, paths, zones and profiles decide. Bad syntax is the viewer's fault whatever it is.
_ROUTING = ("refused_zone", "status_404", "status_405", "status_413", "status_421", "status_501")
_UPSTREAM = ("status_502", "status_503", "status_504")
_CUT = ("refused_connections_all", "refused_connections_address", "closed_slow_head", "closed_slow_reader")


def counts_of(dataplane: DataPlane, origins: Origins) -> Counts:
    """Since the start of the process."""
    totals = dataplane.plane.totals()
    by_id = origins.by_id
    viewers = dataplane.plane.origin_totals(list(by_id))
    return Counts(
        requests=totals["requests"],
        routing=sum(totals[name] for name in _ROUTING),
        upstream=sum(totals[name] for name in _UPSTREAM),
        connections=totals["connections_accepted"],
        cut=sum(totals[name] for name in _CUT),
        origins={
            origin.name: OriginCounts(viewers[origin_id][0], origin.answered, origin.refused, origin.errors)
            for origin_id, origin in by_id.items()
        },
    )
