"""docs/monitoring/dashboard.json: Grafana's panels ask for metrics that there are."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats.findings.overview_findings import find
from django_pooled.poolstats.prometheus import of_overview

from .exposed import samples, unknown_in
from .incidents import EVERYTHING
from .promtool import BEFORE, DURING, EVERY, needs_promtool, run_tests, series

if TYPE_CHECKING:
    from collections.abc import Iterator

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[3] / "docs" / "monitoring" / "dashboard.json").read_text()
)
PANELS: list[dict[str, Any]] = [it for it in DASHBOARD["panels"] if it["type"] != "row"]
TITLES = [panel["title"] for panel in PANELS]


def queries(panel: dict[str, Any]) -> Iterator[str]:
    """Yield the panel's queries as Grafana sends them, for all of each variable."""
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "1m")
        yield re.sub(r"\$(job|instance|database)\b", ".*", query)


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_a_panel_asks_for_what_is_exposed(panel: dict[str, Any]) -> None:
    assert [it for query in queries(panel) for it in unknown_in(query, EVERYTHING.amid)] == []


@needs_promtool
def test_each_query_has_an_answer(tmp_path: Path) -> None:
    tests = [
        {
            "expr": f"count({query}) > bool 0",
            "eval_time": f"{(BEFORE + DURING - 1) * EVERY}s",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for panel in PANELS
        for query in queries(panel)
    ]
    assert len(tests) > len(PANELS)
    run_tests(tmp_path, {"input_series": series(EVERYTHING), "promql_expr_test": tests})


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_a_legend_shows_labels_that_its_query_keeps(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        kept = {"le"} | set(
            re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"])))
        )
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown
        assert shown | {"le"} == kept | {"le"}


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_a_unit_is_that_of_the_figures(panel: dict[str, Any]) -> None:
    units = set(map(unit_of, queries(panel)))
    assert units == {panel["fieldConfig"]["defaults"]["unit"]}


def unit_of(query: str) -> str:
    """Return Grafana's word for the unit of what a query returns."""
    if re.search(r"_seconds(_bucket)?\{", query):
        return "s"
    if re.search(r"\) / sum|\} / \w", query):
        return "percentunit"
    return "ops" if "rate(" in query else "short"


def test_each_metric_has_a_panel_but_for_limits_and_sums() -> None:
    asked = {
        name
        for panel in PANELS
        for query in queries(panel)
        for name in re.findall(r"django_pooled_\w+", query)
    }
    known = {re.sub(r"_(count|sum)$", "_bucket", name) for name, _, _ in samples(EVERYTHING.amid)}
    assert known - asked == {
        "django_pooled_pool_size",  # in use and idle, stacked
        "django_pooled_pool_min_size",
        "django_pooled_checkins_total",
        "django_pooled_discarded_total",
    }


def test_each_metric_has_samples_for_these_tests() -> None:
    look = EVERYTHING.amid
    named = {family.name for family in of_overview(look, find(look)) if not family.samples}
    assert named == set()


def test_variables_choose_the_data_source_and_what_is_shown() -> None:
    variables = {it["name"]: it for it in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "database"]
    assert variables["datasource"]["query"] == "prometheus"
    for name in ("job", "instance", "database"):
        assert not unknown_in(variables[name]["definition"], EVERYTHING.amid)
    sources = {json.dumps(target["datasource"]) for panel in PANELS for target in panel["targets"]}
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}


def test_panels_lie_beside_each_other() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [(it["title"], it["gridPos"]) for it in DASHBOARD["panels"]]
    for _, place in places:
        assert place["x"] + place["w"] <= 24
    for (one, a), (other, b) in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one, other)


def test_a_panel_says_what_it_shows() -> None:
    assert [panel["title"] for panel in PANELS if not panel["description"].endswith(".")] == []
