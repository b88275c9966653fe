"""What Django's own test cases offer; run by ``manage.py test`` on both engines."""

from __future__ import annotations

from urllib.request import urlopen

from django.db import connection
from django.test import LiveServerTestCase, TestCase, TransactionTestCase

from tests.app.models import Counter, Note


class RolledBack(TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        Counter.objects.create(name="of the class")

    def test_first(self) -> None:
        Counter.objects.create(name="only here")
        assert Counter.objects.count() == 3

    def test_second(self) -> None:
        Counter.objects.create(name="only here")
        assert Counter.objects.count() == 3


class InSeveralDatabases(TestCase):
    databases = {"default", "other", "twin"}

    def test_each_has_rows_of_its_own(self) -> None:
        Counter.objects.using("other").create(name="only there")
        assert Counter.objects.using("other").count() == 2
        assert Counter.objects.using("default").count() == 1


class Committed(TransactionTestCase):
    databases = {"default", "replica"}
    serialized_rollback = True

    def test_a_mirror_sees_it(self) -> None:
        Note.objects.create(text="committed")
        assert Note.objects.using("replica").get().text == "committed"

    def test_rows_of_migrations_are_back(self) -> None:
        assert Counter.objects.get().name == "from a migration"


class Reset(TransactionTestCase):
    reset_sequences = True

    def test_sequences_start_anew(self) -> None:
        assert Note.objects.create(text="first").pk == 1


class Served(LiveServerTestCase):
    def test_requests_write_what_the_test_reads(self) -> None:
        for number in range(4):
            with urlopen(f"{self.live_server_url}/add/{number}/") as answer:
                assert answer.status == 200
        assert Counter.objects.count() >= 4
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_database()")
            assert cursor.fetchone()[0].startswith("test_")
