"""One contestant in a process of its own: requests without a web server around them."""

from __future__ import annotations

import os
import time

began = time.perf_counter(), time.process_time()

if os.environ.get("BENCHMARK_GEVENT"):
    # Before anything that it has to patch.
    from gevent import monkey

    monkey.patch_all()

import json  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import _worker  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

QUERY = "SELECT 1"


class Commands(_worker.Commands):
    """What the script can have one contestant do."""

    def __init__(self, imported: tuple[float, float]) -> None:
        super().__init__()
        self._imported = imported
        self._cycle = self._psycopg() if is_psycopg() else self._django()

    def _django(self) -> Callable[..., None]:
        from django.core.signals import request_finished, request_started

        def ask(query: str) -> None:
            with self._connection.cursor() as cursor:
                cursor.execute(query)
                cursor.fetchone()

        def cycle(query: str = QUERY) -> None:
            request_started.send(sender=Commands, environ={})
            ask(query)
            request_finished.send(sender=Commands)

        return cycle

    def _psycopg(self) -> Callable[..., None]:
        import psycopg
        from django.db import connection

        own = psycopg.connect(**connection.get_connection_params(), autocommit=True)

        def cycle(query: str = QUERY) -> None:
            with own.cursor() as cursor:
                cursor.execute(query)
                cursor.fetchone()

        return cycle

    def imported(self) -> dict[str, float]:
        """Return the seconds until Django and the engine were imported and set up."""
        wall, cpu = self._imported
        return {"wall": wall, "cpu": cpu}

    def cycles(self, count: int) -> dict[str, float]:
        """Make that many requests in one thread."""
        walls = []
        cpu = time.process_time()
        for _ in range(count):
            began = time.perf_counter()
            self._cycle()
            walls.append(time.perf_counter() - began)
        cpu = time.process_time() - cpu
        return {**percentiles(walls), "wall": sum(walls) / count, "cpu": cpu / count}

    def share(
        self, threads: int, seconds: float, query: str = QUERY, at: float | None = None
    ) -> dict[str, float]:
        """Have that many threads make requests for so long.

        Args:
            threads: how many.
            seconds: how long.
            query: what each asks.
            at: the moment of `perf_counter()`, which all processes share, from which on requests
                count, for processes to be measured over the same time; until then they are made.

        Raises:
            RuntimeError: that moment was over when they began.
        """
        walls: list[list[float]] = [[] for _ in range(threads)]
        barrier = threading.Barrier(threads + 1)
        errors: list[str] = []

        def ask(mine: list[float]) -> None:
            try:
                self._cycle(query)
                barrier.wait(60.0)
                start = time.perf_counter()
                if at is not None and start > at:
                    raise RuntimeError("it was late when the threads had started")
                end = (start if at is None else at) + seconds
                while (began := time.perf_counter()) < end:
                    self._cycle(query)
                    done = time.perf_counter()
                    if at is None or at <= done < end:
                        mine.append(done - began)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
                barrier.abort()
            finally:
                self._connection.close()

        running = [threading.Thread(target=ask, args=(mine,)) for mine in walls]
        for thread in running:
            thread.start()
        try:
            barrier.wait(60.0)
        except threading.BrokenBarrierError:
            raise RuntimeError(errors[0] if errors else "threads did not start") from None
        began, cpu = time.perf_counter(), time.process_time()
        for thread in running:
            thread.join()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        if errors:
            raise RuntimeError(errors[0])
        every = [one for mine in walls for one in mine]
        if at is not None:
            wall = seconds
        return {**percentiles(every), "rate": len(every) / wall, "cpu": cpu / len(every)}

    def memory(self) -> float:
        """Return the bytes that belong to this process alone (Linux)."""
        private = 0
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            name, _, amount = line.partition(":")
            if name.startswith("Private_") and name != "Private_Hugetlb":
                private += int(amount.split()[0]) * 1024
        return private


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile."""
    ordered = sorted(values)
    return {
        f"p{percent}": ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
        for percent in (50, 99)
    }


def is_psycopg() -> bool:
    """Tell whether Django has no part in it but for the parameters of the connection."""
    return os.environ.get("BENCHMARK_ALONE") == "1"


def main() -> None:
    """Import everything, note how long that took, and obey."""
    _worker.set_up()
    from django.db import connection

    # Loads the engine.
    engine: Any = connection.settings_dict["ENGINE"]
    assert json.dumps(engine)
    _worker.obey(Commands((time.perf_counter() - began[0], time.process_time() - began[1])))


if __name__ == "__main__":
    main()
