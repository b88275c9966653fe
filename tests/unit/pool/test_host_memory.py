from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from django_pooled.pool.addresses import Address
from django_pooled.pool.host_memory import DELAY, MOST, SILENT_AFTER, HostMemory

if TYPE_CHECKING:
    from django_pooled.pool.host_memory import Turn

A, B, C = (Address(host, "", "5432", "") for host in ("a", "b", "c"))
ALL = [A, B, C]
refused = psycopg.OperationalError("connection failed: Connection refused")
standby = psycopg.OperationalError("connection failed: session is read-only")
silent = psycopg.errors.ConnectionTimeout("connection timeout expired")


@pytest.fixture
def memory() -> HostMemory:
    return HostMemory("shop")


def order(memory: HostMemory) -> list[Address]:
    return [turn.address for turn in turns(memory)]


def turns(memory: HostMemory) -> list[Turn]:
    return memory.turns(ALL)[0]


def fail(memory: HostMemory, address: Address, error: Exception = refused, times: int = 1) -> None:
    for _ in range(times):
        memory.failed(address, error, time.monotonic())


def make_due(memory: HostMemory, address: Address) -> None:
    memory._records[address].try_again_at = 0.0


def test_addresses_that_are_not_known_are_tried_in_the_order_of_the_settings(
    memory: HostMemory,
) -> None:
    assert order(memory) == ALL
    assert [turn.delay for turn in turns(memory)] == [DELAY] * 3
    assert [turn.patience for turn in turns(memory)] == [SILENT_AFTER] * 3


def test_one_that_failed_is_tried_last_until_it_serves_again(memory: HostMemory) -> None:
    fail(memory, A, times=9)
    assert order(memory) == [B, C, A]
    memory.succeeded(A, 0.01)
    assert order(memory) == ALL


def test_once_it_is_time_one_that_failed_is_tried_beside_the_first_good_one(
    memory: HostMemory,
) -> None:
    fail(memory, B)
    make_due(memory, B)
    first, *others = turns(memory)
    assert (first.address, first.delay, first.patience) == (B, 0.0, 0.0)
    assert [turn.address for turn in others] == [A, C]
    # And not by each of those that connect at the same moment.
    assert order(memory) == [A, C, B]


def test_with_none_that_is_good_all_are_tried_in_their_order(memory: HostMemory) -> None:
    for address in ALL:
        fail(memory, address)
        make_due(memory, address)
    assert order(memory) == ALL
    assert order(memory) == ALL


def test_one_that_kept_silent_is_not_waited_for(memory: HostMemory) -> None:
    for address in ALL:
        fail(memory, address, silent if address is A else standby)
    first, second, _ = turns(memory)
    assert (first.address, first.delay, first.patience) == (A, 0.0, 0.0)
    assert (second.address, second.delay, second.patience) == (B, DELAY, SILENT_AFTER)


def test_one_with_an_attempt_that_goes_on_is_left_out_until_that_has_ended(
    memory: HostMemory,
) -> None:
    memory.left(A, time.monotonic(), silent=True)
    found, outstanding = memory.turns(ALL)
    assert ([turn.address for turn in found], outstanding) == ([B, C], [A])
    memory.ended(A)
    assert memory.turns(ALL)[1] == []


def test_with_all_silent_none_is_left_out(memory: HostMemory) -> None:
    for address in ALL:
        memory.left(address, time.monotonic(), silent=True)
    found, outstanding = memory.turns(ALL)
    assert (len(found), outstanding) == (3, [])


def test_where_logins_take_long_the_next_one_waits_longer(memory: HostMemory) -> None:
    memory.succeeded(A, 2.0)
    assert (turns(memory)[0].delay, turns(memory)[0].patience) == (4.0, 4.0)


def test_waits_before_another_try_double_up_to_half_a_minute(memory: HostMemory) -> None:
    waits = []
    for _ in range(200):
        fail(memory, A)
        waits.append(memory._records[A].try_again_at - time.monotonic())
    assert waits[0] <= 1.0
    assert waits[1] <= 2.0
    assert 15.0 < max(waits) <= 30.0


def test_attempts_side_by_side_that_fail_alike_are_one_failure(memory: HostMemory) -> None:
    began = time.monotonic()
    for _ in range(20):
        memory.failed(A, refused, began)
    assert memory._records[A].failures == 1


def test_addresses_that_names_have_no_more_are_forgotten(memory: HostMemory) -> None:
    for number in range(MOST + 1):
        fail(memory, A._replace(hostaddr=f"10.0.0.{number}"))
    memory.turns(ALL)
    assert set(memory._records) == set(ALL)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_host_that_is_passed_over_is_told_once_and_again_when_it_serves(
    memory: HostMemory, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "django_pooled.pool"):
        for _ in range(3):
            fail(memory, A)
            memory.passed_over(A, B, refused)
        memory.succeeded(A, 0.1)
        memory.succeeded(A, 0.1)
    assert logged(caplog) == [
        "pool 'shop': a:5432 does not serve, connected to b:5432: "
        "connection failed: Connection refused",
        "pool 'shop': a:5432 serves again after 0.0 s",
    ]


def test_a_standby_that_is_passed_over_is_no_news(
    memory: HostMemory, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "django_pooled.pool"):
        fail(memory, A, standby)
        memory.passed_over(A, B, standby)
    assert logged(caplog) == []


def test_one_of_several_addresses_of_a_name_is_no_news(
    memory: HostMemory, caplog: pytest.LogCaptureFixture
) -> None:
    of_six, of_four = (A._replace(hostaddr=each) for each in ("::1", "127.0.0.1"))
    with caplog.at_level(logging.WARNING, "django_pooled.pool"):
        fail(memory, of_six)
        memory.passed_over(of_six, of_four, refused)
    assert logged(caplog) == []
