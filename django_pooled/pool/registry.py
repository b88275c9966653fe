"""The pools of this process: found by database, forgotten after fork(), closed at exit."""

from __future__ import annotations

import os
import threading
from time import monotonic
from typing import TYPE_CHECKING

from django_pooled.integrations import uwsgi
from django_pooled.stats import publisher

from .process_exit import at_exit, has_begun

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from django_pooled.stats.orders import Answer, Order
    from django_pooled.stats.snapshot import PoolSnapshot, ProcessReport

    from .pool import Pool

__all__ = ["close_all", "close_pools_of", "pool_for", "snapshots"]

# Reentrant: a signal handler that queries may interrupt the thread that holds it.
_lock = threading.RLock()
_pools: dict[tuple[str, Hashable], Pool] = {}
"""The lock guards what is added and taken out; it is read without."""

# Pools inherited through fork(). They are kept for ever: a connection or pool that is freed would
# use sockets and locks of the parent.
_inherited: list[Pool] = []
"""Guarded by the lock of the forks, as what follows."""
_owner = os.getpid()
"""The process that all above is of; set last, and read without the lock."""
_forks: dict[int, threading.RLock] = {}
"""A lock for each process that has parted from its parent's pools, by its pid: a parent's may be
held for ever. Only ever added to, by setdefault(), which no other thread divides."""

PATIENCE = 5.0
"""Seconds that a look at the server waits for a connection of a pool, once a reader wants it."""


def pool_for(alias: str, target: Hashable, make: Callable[[], Pool]) -> Pool:
    """Return the open pool of *alias* that leads to *target*, making it on first use.

    Args:
        alias: Key of the database in ``settings.DATABASES``.
        target: Everything that tells one server, database, role and configuration from
            another; when it changes (a test database, a time zone), so does the pool.
        make: Makes the pool.
    """
    key = (alias, target)
    # Here too, for a process that was forked without the hooks.
    _after_fork_in_child()
    pool = _pools.get(key)
    if pool is not None and not pool.closed:
        return pool
    with _lock:
        pool = _pools.get(key)
        if pool is None or pool.closed:
            if not _pools:
                uwsgi.warn_without_threads()
                has_begun()
            made = make()
            # Unless a signal handler of this thread has come by meanwhile.
            if _pools.get(key) is pool:
                _pools[key] = made
            pool = _pools[key]
            pool.open()
            _publish(pool.options.stats_dir, pool.site.key)
            _join_pause(pool)
    return pool


def close_pools_of(alias: str, timeout: float = 5.0, server: str | None = None) -> None:
    """Close the pools of *alias*; connections in use are closed when they come back.

    Args:
        alias: Key of the database in ``settings.DATABASES``.
        timeout: Seconds that other threads have to finish what they have in use.
        server: Those of other aliases that lead to this database are closed too, as `Pool.server`.
    """
    _after_fork_in_child()
    with _lock:
        keys = [key for key, pool in _pools.items() if key[0] == alias or pool.server == server]
        pools = [_pools.pop(key) for key in keys]
    for pool in pools:
        pool.close(timeout)


def close_all(timeout: float = 5.0, *, cancel: bool = False) -> None:
    """Close every pool of this process, as at its exit.

    Args:
        timeout: Seconds, in all, that other threads have to finish what they have in use.
        cancel: Whether statements that they have under way after that are cancelled on the server,
            which would go on with them, for as long as they take. A COMMIT is not cancelled. Their
            threads get a ``DeadlineExceeded``, which says that the process is ending.
    """
    deadline = monotonic() + timeout
    _after_fork_in_child()
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.close(max(0.05, deadline - monotonic()), cancel=cancel)


def snapshots() -> list[PoolSnapshot]:
    """Describe the open pools of this process."""
    return [pool.snapshot() for pool in list(_pools.values()) if not pool.closed]


def _publish(stats_dir: str | os.PathLike[str] | bool | None, site: str) -> None:
    if stats_dir is not False:
        folder = os.fspath(stats_dir) if isinstance(stats_dir, (str, os.PathLike)) else None
        publisher.start(folder, _report, site, _look, _look_at_servers, _obey)


def _look(seconds: float) -> list[PoolSnapshot]:
    """Describe the open pools, after their holders of the last seconds were noted."""
    for pool in list(_pools.values()):
        pool.note_held(seconds)
        pool.look_at_server()
    return snapshots()


def _look_at_servers() -> None:
    for pool in list(_pools.values()):
        pool.look_at_server(PATIENCE)


def _join_pause(pool: Pool) -> None:
    """Pause a new pool, if those of the site are paused."""
    site = pool.site.key
    found = publisher.standing_pause_of(site)
    if found is None or not found[0].is_for(pool.alias, pool.server, site):
        return
    order, by = found
    pool.steering.obey(order, by)
    if publisher.standing_pause_of(site) is None:
        # It was resumed in between, when this one was not paused yet.
        pool.steering.obey(order._replace(verb="resume"), by)


def _obey(order: Order, by: str) -> list[Answer]:
    return [
        pool.steering.obey(order, by)
        for pool in list(_pools.values())
        if not pool.closed and order.is_for(pool.alias, pool.server, pool.site.key)
    ]


def _report() -> ProcessReport:
    from django_pooled.stats.snapshot import process_report

    return process_report(snapshots())


def _after_fork_in_child() -> None:
    global _lock, _owner, _pools
    pid = os.getpid()
    if _owner == pid:
        return
    # Without hooks it is the first use that comes here, and another thread's may be right behind:
    # that waits, and finds no pool of the parent's.
    with _forks.setdefault(pid, threading.RLock()):
        if _owner == pid:
            return
        inherited, _pools = _pools, {}
        _lock = threading.RLock()
        for pool in inherited.values():
            pool.abandon()
            _inherited.append(pool)
        publisher.after_fork_in_child()
        _owner = pid


def _at_exit() -> None:
    _after_fork_in_child()
    publisher.stop()
    # Threads that could still give something back have ended, but for daemons.
    close_all(timeout=0.2)


at_exit(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
uwsgi.call_after_fork(_after_fork_in_child)
