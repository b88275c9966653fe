"""The past as the page gets it: columns for its charts, incidents, and who held connections."""

from __future__ import annotations

from time import time
from typing import Any

from django_pooled.dashboard import past as page
from django_pooled.dashboard.figures import content
from django_pooled.dashboard.watch import Snapshot
from django_pooled.poolstats.past import Past
from tests.support.reports import connection, overview, pool, process, times

NOW = time() // 60 * 60


def interval(ago: float, **figures: Any) -> dict[str, Any]:
    made = pool(**{"id": "one", "checkouts": 0, "wait": times(), **figures})
    return {"time": NOW - ago, "seconds": 5.0, "pools": [made]}


def test_each_figure_of_the_charts_is_a_column_beside_the_times() -> None:
    waiting = {"in_use": 10, "idle": 0, "waiting": 4, "longest_waiting": 2.5}
    counted = {"checkouts": 20, "timeouts": 5, "restarts": {"40001": 10}, "wait": times(0.01)}
    look = overview(process(history=[interval(10), interval(5, **waiting, **counted)]), servers=[])
    found = page.content(Past(look, 900.0))
    assert found["times"] == [NOW - 10, NOW - 5]
    columns = found["columns"]
    assert columns["in_use"] == [0, 10]
    assert columns["waiting"] == [0, 4]
    assert columns["longest"] == [None, 2.5]
    assert columns["checkouts"] == [0.0, 4.0]
    assert columns["failures"] == [0.0, 1.0]
    assert columns["restarts"] == [0.0, 2.0]
    assert columns["p95"][0] is None
    assert columns["one waiting"] == [0, 4]
    assert [(it["begin"], it["end"]) for it in found["incidents"]] == [(NOW - 5, None)] * 3
    assert {it["code"] for it in found["incidents"]} == {"waiting", "failed", "restarts"}


def test_the_many_pools_of_a_large_site_have_no_columns_of_their_own() -> None:
    processes = [process(pid=n, history=[interval(5, in_use=1)]) for n in range(1, 26)]
    columns = page.columns(Past(overview(*processes, servers=[]), 900.0))["columns"]
    assert columns["in_use"] == [25]
    assert not any(name.startswith("one") for name in columns)


def test_holders_are_told_with_what_they_held_in_all_and_have_now() -> None:
    statement = "select ? from a"
    cart = connection(7, state="in use", since=3.0, by="shop.cart", statement=statement)
    code = connection(8, state="in use", since=9.0, where="shop.tidy.run:17")
    look = overview(
        process(pool(held={"shop.cart": 5.0, "shop.list": 9.0}, connections=[cart, code])),
        process(pool(held={"shop.cart": 6.0}, connections=[connection(9)]), pid=2),
        servers=[],
    )
    assert content(Snapshot(look, None, [], NOW))["holders"] == [
        {
            "name": "shop.cart",
            "seconds": 11.0,
            "in_use": 1,
            "longest": 3.0,
            "statements": {statement: 1},
        },
        {"name": "shop.list", "seconds": 9.0, "in_use": 0, "longest": None, "statements": {}},
        {"name": "shop.tidy.run", "seconds": 0.0, "in_use": 1, "longest": 9.0, "statements": {}},
    ]


def test_no_more_than_ten_holders_are_told() -> None:
    held = {f"view {number}": float(number) for number in range(30)}
    names = [it["name"] for it in content(_snapshot(held))["holders"]]
    assert names == [f"view {number}" for number in range(29, 19, -1)]


def _snapshot(held: dict[str, float]) -> Snapshot:
    return Snapshot(overview(process(pool(held=held)), servers=[]), None, [], NOW)
