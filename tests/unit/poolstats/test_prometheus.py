"""poolstats --format prometheus: what Prometheus's own parser makes of it."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from django_pooled.poolstats.findings.finding import Finding, Level
from django_pooled.poolstats.prometheus import Source, as_text, of_overview, of_pools
from django_pooled.poolstats.server.view import ServerView
from django_pooled.poolstats.site import Site
from django_pooled.stats.histogram import BOUNDS
from tests.support.reports import overview, pool, process, times

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django_pooled.poolstats.overview import Overview

SERVERS = {"default": "db.example:5432/site", "replica": "replica.example:5432/site"}
PID = {"database": "default", "server": SERVERS["default"], "pid": "4121"}


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return each sample, after making sure that there is no other of its name and labels."""
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(look: Overview, name: str, labels: Mapping[str, str] = PID) -> float | None:
    key = f"django_pooled_{name}", frozenset(labels.items())
    return samples(as_text(of_overview(look))).get(key)


def everything() -> Overview:
    """Return an overview in which no figure is missing or zero."""
    busy = pool(
        idle=1,
        in_use=2,
        waiting=3,
        longest_waiting=1.25,
        closed={"dead": 4},
        restarts={"40001": 3, "lost": 1},
        restarted={"40001": {"committed": 2, "failed": 1}},
        restarts_of={"Cast.post": 3, "count": 1},
        refused_restarts={"budget": 5},
        deadlines={"cancelled": 7},
        pinned={"SET": 2},
        replaced=6,
        lost_commits={"committed": 1},
        idempotency_keys={"replayed": 2},
        wait=times(0.00005, 0.002, 0.002, 500.0),
    )
    server = ServerView("default", max_connections=100, used=3, blocked=2, states={"idle": 3})
    away = ServerView("replica", error="refused")
    site = Site("", tuple(SERVERS.items()))
    return overview(process(busy), process(pool(), pid=4122), servers=[server, away], site=site)


def test_a_line_is_a_comment_or_a_sample() -> None:
    line = re.compile(
        r"# (HELP django_pooled_\w+ \S.*|TYPE django_pooled_\w+ (counter|gauge|histogram))"
        r'|django_pooled_\w+(\{(\w+="([^"\\\n]|\\[\\"n])*",?)+\})? -?[0-9.e+-]+'
    )
    text = as_text(of_overview(everything()))
    assert [found for found in text.splitlines() if not line.fullmatch(found)] == []
    assert text.endswith("\n")


def test_the_samples_of_a_metric_stand_together_below_one_help_and_one_type() -> None:
    blocks: list[str] = []
    kinds: dict[str, str] = {}
    for line in as_text(of_overview(everything())).splitlines():
        if line.startswith("# HELP "):
            blocks.append(line.split()[2])
        elif line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert blocks[-1] == name
            kinds[name] = kind
        else:
            name = line.partition("{")[0].partition(" ")[0]
            stem = blocks[-1]
            parts = {f"{stem}_bucket", f"{stem}_sum", f"{stem}_count"}
            assert name in (parts if kinds[stem] == "histogram" else {stem})
    assert len(blocks) == len(set(blocks))
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in kinds.items())


def test_a_histogram_counts_upwards_to_all_and_has_their_sum() -> None:
    found = samples(as_text(of_overview(everything())))
    name = "django_pooled_checkout_wait_seconds"
    pairs = [
        (dict(labels)["le"], count)
        for (metric, labels), count in found.items()
        if metric == f"{name}_bucket" and ("pid", "4121") in labels
    ]
    buckets = sorted((float(bound), count) for bound, count in pairs)
    counts = dict(buckets)
    assert [bound for bound, _ in buckets] == pytest.approx([*BOUNDS, float("inf")])
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert (counts[0.0001], counts[0.0015], counts[0.0022], counts[100.0]) == (1, 1, 3, 3)
    assert counts[float("inf")] == found[f"{name}_count", frozenset(PID.items())] == 4
    assert found[f"{name}_sum", frozenset(PID.items())] == pytest.approx(500.00405)
    # Without the noise of binary fractions, or a query would not find them.
    assert {len(bound) for bound, _ in pairs} <= {1, 2, 3, 4, 5, 6, 7}


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("pool_in_use", {}, 2),
        ("pool_waiting", {}, 3),
        ("pool_longest_waiting_seconds", {}, 1.25),
        ("connections_closed_total", {"reason": "dead"}, 4),
        ("connections_closed_total", {"reason": "drained"}, 0),
        ("restarts_total", {"sqlstate": "40001"}, 3),
        ("restart_outcomes_total", {"sqlstate": "40001", "outcome": "failed"}, 1),
        ("restarts_refused_total", {"reason": "budget"}, 5),
        ("restarts_refused_total", {"reason": "deadline"}, 0),
        ("deadlines_exceeded_total", {"outcome": "cancelled"}, 7),
        ("deadlines_exceeded_total", {"outcome": "checkout"}, 0),
        ("pinned_total", {"state": "SET"}, 2),
        ("replaced_total", {}, 6),
        ("lost_commits_total", {"outcome": "committed"}, 1),
        ("lost_commits_total", {"outcome": "unknown"}, 0),
        ("idempotency_keys_total", {"outcome": "replayed"}, 2),
        ("idempotency_keys_total", {"outcome": "conflict"}, 0),
    ],
)
def test_a_figure_of_a_pool_is_a_sample(name: str, labels: dict[str, str], expected: float) -> None:
    assert value(everything(), name, {**PID, **labels}) == expected


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("silent_processes", {}, 0),
        ("server_up", {"database": "default"}, 1),
        ("server_up", {"database": "replica"}, 0),
        ("server_max_connections", {"database": "default"}, 100),
        ("server_max_connections", {"database": "replica"}, None),
        ("server_free_connections", {"database": "default"}, 97),
        ("server_blocked_sessions", {"database": "default"}, 2),
        ("server_sessions", {"database": "default", "state": "idle"}, 3),
    ],
)
def test_a_figure_of_a_server_is_a_sample(
    name: str, labels: dict[str, str], expected: float | None
) -> None:
    if "database" in labels:
        labels = {**labels, "server": SERVERS[labels["database"]]}
    assert value(everything(), name, labels) == expected


def test_findings_are_counted_by_code_and_level() -> None:
    found = [
        Finding(Level.WARNING, "One.", "idle in transaction"),
        Finding(Level.WARNING, "Another.", "idle in transaction"),
        Finding(Level.FINE, "A note.", "pooler"),
    ]
    text = as_text(of_overview(overview(), found))
    assert {key: it for key, it in samples(text).items() if key[0].endswith("findings")} == {
        ("django_pooled_findings", frozenset(labels.items())): number
        for labels, number in (
            ({"finding": "idle-in-transaction", "level": "warning"}, 2),
            ({"finding": "pooler", "level": "fine"}, 1),
        )
    }


def test_what_a_pool_does_not_have_is_no_zero() -> None:
    look = overview(process(pool(retry_budget_left=None)))
    assert value(look, "retry_budget_left") is None
    assert value(look, "checkouts_total") == 7


def test_nobody_waiting_is_a_zero() -> None:
    assert value(overview(), "pool_longest_waiting_seconds") == 0


def test_pools_with_the_same_labels_are_added_up() -> None:
    wait, restarted = times(0.001), {"40001": {"committed": 1}}
    rows = [
        pool(in_use=2, longest_waiting=1.0, retry_budget_left=7.0, wait=wait, restarted=restarted),
        pool(in_use=3, longest_waiting=9.0, retry_budget_left=5.0, wait=wait, restarted=restarted),
    ]
    look = overview(process(*rows))
    assert value(look, "pool_in_use") == 5
    assert value(look, "pool_longest_waiting_seconds") == 9
    assert value(look, "retry_budget_left") == 5
    assert value(look, "checkout_wait_seconds_count") == 2
    labels = {**PID, "sqlstate": "40001", "outcome": "committed"}
    assert value(look, "restart_outcomes_total", labels) == 2


WITHOUT_PACKAGE = """
import sys
sys.modules["prometheus_client"] = None
from django.conf import settings
pooled = {"ENGINE": "django_pooled", "NAME": "site"}
settings.configure(DATABASES={"default": pooled}, INSTALLED_APPS=["django_pooled"])
import django
django.setup()
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.test import RequestFactory
from django_pooled.metrics import PoolCollector, prometheus
for ask in (
    lambda: prometheus(RequestFactory().get("/")),
    lambda: PoolCollector().collect(),
    lambda: call_command("poolstats", format="prometheus"),
):
    try:
        ask()
    except (ImproperlyConfigured, CommandError) as error:
        print(error)
"""


def test_without_prometheus_client_each_way_to_metrics_says_how_to_install_it() -> None:
    command = [sys.executable, "-c", WITHOUT_PACKAGE]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60.0)
    assert (
        found.stdout.splitlines()
        == [
            "Metrics for Prometheus need the package prometheus-client: "
            'pip install "django-pooled[prometheus]".'
        ]
        * 3
    )


@pytest.mark.parametrize("alias", ['quo"te', "back\\slash", "new\nline", "\\n", "é", "a,b}="])
def test_any_alias_can_be_a_label(alias: str) -> None:
    [made] = overview().groups[0].rows
    text = as_text(of_pools([Source({"database": alias}, made.pool, made.counters)]))
    assert samples(text)["django_pooled_pool_idle", frozenset({("database", alias)})] == 1
