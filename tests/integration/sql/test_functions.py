"""The functions that are known by name, beside those that servers have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from django_pooled.sql.functions import READS, WRITES

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer


def test_functions_are_what_they_are_taken_for(shared_server: EmbeddedServer) -> None:
    # Those that PostgreSQL calls volatile and are none the less known to read.
    volatile = {
        *("clock_timestamp", "timeofday", "random", "random_normal", "gen_random_uuid", "uuidv4"),
        *("uuidv7", "pg_sleep", "pg_sleep_for", "pg_sleep_until", "current_query"),
        *("array_sample", "array_shuffle", "pg_jit_available", "pg_lock_status"),
        *("pg_blocking_pids", "pg_safe_snapshot_blocking_pids", "pg_sequence_last_value"),
        *("pg_database_size", "pg_relation_size", "pg_table_size", "pg_indexes_size"),
        *("pg_total_relation_size", "pg_tablespace_size", "pg_partition_tree"),
        *("pg_partition_ancestors", "pg_prepared_xact", "pg_collation_actual_version"),
        *("pg_database_collation_actual_version", "pg_notification_queue_usage"),
        *("pg_is_in_recovery", "pg_is_wal_replay_paused", "pg_get_wal_replay_pause_state"),
        *("pg_last_wal_receive_lsn", "pg_last_wal_replay_lsn", "pg_last_xact_replay_timestamp"),
        *("pg_last_committed_xact", "pg_current_wal_lsn", "pg_current_wal_flush_lsn"),
        *("pg_current_wal_insert_lsn", "pg_control_checkpoint", "pg_control_init"),
        *("pg_control_recovery", "pg_control_system", "pg_xact_status", "txid_status"),
        *("pg_xact_commit_timestamp", "pg_get_multixact_stats", "timezone"),
    }
    with psycopg.connect(**shared_server.parameters()) as connection:
        found = connection.execute(
            "SELECT proname, bool_or(provolatile = 'v') FROM pg_proc"
            " WHERE pronamespace = 'pg_catalog'::regnamespace GROUP BY proname"
        ).fetchall()
    is_volatile = dict(found)
    assert {name for name in READS if is_volatile.get(name)} <= volatile
    assert not READS & WRITES
    assert len(READS & is_volatile.keys()) > 500
