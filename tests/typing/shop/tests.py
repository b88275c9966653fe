"""Tests of a project, with the helpers for them."""

from __future__ import annotations

from django.test import TransactionTestCase
from typing_extensions import assert_type

from django_pooled.testing import (
    end_deadlines_at_once,
    fail_next_transaction,
    no_waiting,
    repeated,
)
from shop.views import pay_once


class PayTests(TransactionTestCase):
    def test_a_conflict_is_restarted(self) -> None:
        with fail_next_transaction() as fault, no_waiting() as left_out:
            pay_once(1)
        assert_type(fault.struck, int)
        assert_type(left_out, list[float])

    def test_a_lost_answer_is_found_out(self) -> None:
        with fail_next_transaction(None, phase="answer", times=2, using="default"):
            pay_once(1)

    def test_a_deadline_ends(self) -> None:
        with end_deadlines_at_once() as nothing:
            assert_type(nothing, None)

    def test_a_repeat_gets_the_stored_response(self) -> None:
        response = repeated(self.client.post, "/pay/", {"amount": "7"}, key="a-key")
        assert_type(response.status_code, int)
