"""docs/monitoring/alerts.yml: which alerts fire, by Prometheus's own promtool."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from django_pooled.poolstats.difference import since
from django_pooled.poolstats.findings.finding import Finding, Kind, Level
from django_pooled.poolstats.findings.overview_findings import find

from .exposed import unknown_in
from .incidents import CALM, EVERYTHING, INCIDENTS
from .promtool import AFTER, BEFORE, DURING, EVERY, check_rules, needs_promtool, run_tests, series

if TYPE_CHECKING:
    from .incidents import Incident

DOCS = Path(__file__).resolve().parents[3] / "docs"
RULES = DOCS / "monitoring" / "alerts.yml"
TEXT = RULES.read_text("utf-8")
RUNBOOK = (DOCS / "runbook.md").read_text("utf-8")


def check(tmp_path: Path, incident: Incident, *, amid: frozenset[tuple[str, str]]) -> None:
    """Have promtool check that these alerts fire amid an incident, and none before or after."""
    firing = 'count by (finding, severity) (ALERTS{alertstate="firing"})'
    expected = {
        BEFORE - 1: frozenset[tuple[str, str]](),
        BEFORE + DURING - 1: amid,
        BEFORE + DURING + AFTER - 1: frozenset[tuple[str, str]](),
    }
    checks = [
        {
            "expr": firing,
            "eval_time": f"{scrape * EVERY}s",
            "exp_samples": [
                {"labels": f'{{finding="{finding}", severity="{severity}"}}', "value": 1}
                for finding, severity in sorted(fires)
            ],
        }
        for scrape, fires in expected.items()
    ]
    group = {"input_series": series(incident), "promql_expr_test": checks}
    run_tests(tmp_path, group, RULES)


@needs_promtool
def test_the_rules_are_valid() -> None:
    check_rules(RULES)


@needs_promtool
@pytest.mark.parametrize("name", INCIDENTS)
def test_an_incident_fires_its_alerts_and_no_others(name: str, tmp_path: Path) -> None:
    check(tmp_path, INCIDENTS[name], amid=INCIDENTS[name].fires)


@needs_promtool
def test_a_busy_day_fires_nothing(tmp_path: Path) -> None:
    check(tmp_path, CALM, amid=frozenset())


@pytest.mark.parametrize("incident", [CALM, *INCIDENTS.values()], ids=["calm", *INCIDENTS])
def test_what_fires_is_what_poolstats_finds(incident: Incident) -> None:
    found = find(incident.amid, since(incident.amid, incident.before))
    told = {it.code for it in found if it.level is not Level.FINE or it.kind == "unknown commits"}
    assert {finding for finding, _ in incident.fires} == told


@needs_promtool
@pytest.mark.parametrize(
    ("waits", "fires"),
    [([2.8, 0.3], True), ([2.8, *[0.0] * 19], False)],
    ids=["with a short timeout", "once in a while"],
)
def test_waiters_fire_if_they_wait_again_and_again(
    waits: list[float], fires: bool, tmp_path: Path
) -> None:
    name = 'django_pooled_pool_longest_waiting_seconds{job="pools",database="default"}'
    values = " ".join(map(str, waits * 40))
    expected = [{"labels": "{}", "value": 1}] if fires else []
    test = {
        "expr": 'count(count_over_time(ALERTS{alertstate="firing"}[10m]))',
        "eval_time": "9m",
        "exp_samples": expected,
    }
    group = {"input_series": [{"series": name, "values": values}], "promql_expr_test": [test]}
    run_tests(tmp_path, group, RULES)


@needs_promtool
def test_an_alert_names_the_database_and_its_section(tmp_path: Path) -> None:
    alert = {
        "exp_labels": {
            "job": "pools",
            "instance": "web-1",
            "database": "default",
            "severity": "critical",
            "finding": "waiting",
        },
        "exp_annotations": {
            "summary": 'Threads have waited for a connection to "default" for 4s',
            "runbook": "docs/runbook.md#waiting",
        },
    }
    group = {
        "input_series": series(INCIDENTS["holders"]),
        "alert_rule_test": [
            {
                "eval_time": f"{(BEFORE + DURING - 1) * EVERY}s",
                "alertname": "DjangoPooledWaiting",
                "exp_alerts": [alert],
            }
        ],
    }
    run_tests(tmp_path, group, RULES)


def test_a_rule_asks_for_what_is_exposed() -> None:
    queries = re.findall(r"expr: (.+(?:\n {10}.+)*)", TEXT)
    assert len(queries) == len(rules())
    assert [it for query in queries for it in unknown_in(query, EVERYTHING.amid)] == []


def test_what_is_not_exposed_is_told() -> None:
    query = (
        'sum by (pool) (django_pooled_restarts_total{outcome="x"}) + django_pooled_pools'
        ' + django_pooled_lost_commits_total{outcome=~"failed|unknwon"}'
    )
    assert unknown_in(query, EVERYTHING.amid) == [
        "django_pooled_restarts_total{outcome}",
        "django_pooled_pools",
        "outcome=unknwon",
        "pool",
    ]


# In step with the findings, the runbook and the metrics


def rules() -> list[tuple[str, str, str]]:
    """Return alert, code and anchor of each rule."""
    found = []
    for rule in re.split(r"^ +- alert: ", TEXT, flags=re.MULTILINE)[1:]:
        code = re.search(r'finding: ([\w-]+)|finding="([\w-]+)"', rule)
        anchor = re.search(r"runbook: docs/runbook\.md#([\w-]+)", rule)
        assert code, rule
        assert anchor, rule
        found.append((rule.split()[0], code[1] or code[2], anchor[1]))
    return found


def test_a_rule_is_of_a_finding_and_leads_to_its_section() -> None:
    codes = {Finding(Level.FINE, "", kind).code for kind in get_args(Kind)}
    for alert, code, anchor in rules():
        assert code in codes
        assert anchor == code
        assert alert == "DjangoPooled" + code.title().replace("-", "")


def test_the_runbook_names_the_alerts_that_there_are() -> None:
    assert set(re.findall(r"`(DjangoPooled\w+)`", RUNBOOK)) == {alert for alert, _, _ in rules()}


def test_the_page_lists_the_alerts_in_their_order() -> None:
    page = (DOCS / "monitoring.md").read_text("utf-8")
    listed = re.findall(r"^\| `(DjangoPooled\w+)` \|", page, re.MULTILINE)
    assert listed == list(dict.fromkeys(alert for alert, _, _ in rules()))


def test_each_alert_has_an_incident() -> None:
    fired = {finding for incident in INCIDENTS.values() for finding, _ in incident.fires}
    assert fired == {code for _, code, _ in rules()}
