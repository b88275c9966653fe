"""Which waiters a bound on the delay refuses, moment by moment."""

from __future__ import annotations

from django_pooled.pool.queue_delay import QueueDelay


def overloaded() -> QueueDelay:
    """One whose queue has had no wait below 0.1 s from 100 s to 101 s."""
    delay = QueueDelay(0.1, 1.0)
    delay.begin_anew(99.0)
    for now in (100.0, 100.4, 100.9, 101.0):
        delay.note_served(now - 0.15, now)
    assert delay.refuses(100.9, 101.2)
    return delay


def test_nobody_is_refused_in_the_first_interval() -> None:
    delay = QueueDelay(0.1, 1.0)
    delay.note_served(99.0, 100.0)
    assert not delay.refuses(98.0, 100.5)
    assert not delay.refuses(98.0, 100.99)


def test_an_interval_without_a_short_wait_has_those_refused_that_waited_for_twice_the_target() -> (
    None
):
    delay = overloaded()
    assert delay.refuses(101.0, 101.21)
    assert not delay.refuses(101.0, 101.19)


def test_waits_below_twice_the_target_go_on_being_served_in_an_overload() -> None:
    delay = overloaded()
    for tenth in range(12, 40):
        now = 100.0 + tenth / 10
        delay.note_served(now - 0.18, now)
        assert delay.refuses(now - 0.21, now)


def test_an_interval_with_a_short_wait_and_without_a_refusal_ends_them() -> None:
    delay = overloaded()
    delay.note_served(101.4, 101.45)
    assert delay.refuses(101.5, 101.9)
    delay.note_served(102.0, 102.1)
    assert delay.refuses(102.1, 102.4)
    delay.note_served(103.1, 103.15)  # since one was refused until then
    assert not delay.refuses(103.9, 104.0)
    assert not delay.refuses(103.9, 104.2)


def test_no_more_may_wait_in_an_overload_than_are_served_in_time() -> None:
    delay = QueueDelay(0.1, 1.0)
    delay.begin_anew(99.0)
    for twentieth in range(20, 61):
        now = 99.0 + twentieth / 20
        delay.note_served(now - 0.15, now)
        delay.note_taken()
        assert not delay.has_enough([now - 9.0] * 1000, now) or now >= 101.0
    # Twenty a second, so four in 0.2 s.
    assert delay.refuses(101.0, 102.01)
    assert not delay.has_enough([101.95] * 3, 102.1)
    assert delay.has_enough([101.95] * 5, 102.1)
    # They have come together, and may be gone soon.
    assert not delay.has_enough([102.05] * 1000, 102.1)
    # It was a burst of long ago.
    assert not delay.has_enough([104.0] * 1000, 105.0)


def test_a_connection_that_no_waiter_wants_ends_them_too() -> None:
    delay = overloaded()
    delay.note_idle()
    delay.note_served(102.0, 102.1)
    delay.note_idle()
    assert not delay.refuses(102.8, 103.2)


def test_a_single_short_wait_counts_in_a_burst() -> None:
    delay = QueueDelay(0.1, 1.0)
    delay.begin_anew(99.0)
    delay.note_served(99.95, 100.0)
    for now in (100.4, 100.9, 101.0, 101.5):
        delay.note_served(now - 0.15, now)
    assert not delay.refuses(101.0, 101.5)


def test_waiters_are_refused_where_none_is_served_either() -> None:
    delay = QueueDelay(0.1, 1.0)
    delay.begin_anew(99.0)
    assert not delay.refuses(100.0, 100.2)  # begins an interval
    assert delay.refuses(100.0, 101.2)


def test_what_an_overload_long_ago_was_like_does_not_matter() -> None:
    delay = overloaded()
    delay.note_served(101.4, 101.6)
    delay.note_idle()
    assert not delay.refuses(900.0, 900.5)


def test_waits_count_from_the_end_of_a_pause() -> None:
    delay = overloaded()
    delay.begin_anew(130.0)
    assert not delay.refuses(101.0, 130.9)
    delay.note_served(101.0, 130.05)
    assert not delay.refuses(101.0, 131.1)


def test_the_next_look_is_when_a_waiter_may_be_refused() -> None:
    delay = overloaded()
    assert delay.refuses_from(101.5) == 101.7
    delay.note_idle()
    delay.note_served(102.0, 102.1)
    delay.note_idle()
    assert not delay.refuses(102.8, 103.25)
    assert delay.refuses_from(103.0) == 104.25
    assert delay.refuses_from(104.25) == 104.45


def test_a_waiter_that_has_just_come_is_no_short_wait() -> None:
    delay = QueueDelay(0.1, 1.0)
    delay.begin_anew(99.0)
    for twentieth in range(60):
        now = 100.0 + twentieth / 20
        # As a coroutine does, which looks before it sleeps.
        assert not delay.refuses(now, now)
        assert not delay.refuses(now - 0.09, now)
        delay.note_served(now - 0.5, now)
    assert delay.refuses(102.9, 103.2)
