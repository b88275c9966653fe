from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.files.base import ContentFile, File
from django.core.files.uploadedfile import TemporaryUploadedFile

from django_pooled import retry_transaction
from django_pooled.replay.model_instances import current
from tests.app.models import Ballot, Counter, Note
from tests.support.attempts import attempts, fail_with, retried

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("attempts")]


class Elsewhere:
    """An object of a class that nobody knows."""

    note: Note
    counter: Counter


elsewhere = Elsewhere()


def state(instance: Any) -> tuple[Any, ...]:
    """Return all that is known of an instance, without asking the database."""
    fields = {k: repr(v) for k, v in vars(instance).items() if k != "_state"}
    kept = instance._state
    return fields, kept.adding, kept.db, sorted(kept.fields_cache)


def seen(instance: Any) -> None:
    attempts.see(state(instance))


def test_an_instance_that_a_failed_attempt_has_created_is_a_new_one_again() -> None:
    @retried
    def create(note: Note) -> None:
        seen(note)
        note.text += "!"
        note.save()
        attempts.done()

    note = Note(text="new")
    create(note)
    assert attempts.same
    assert list(Note.objects.values_list("pk", "text")) == [(note.pk, "new!")]
    assert not note._state.adding


@pytest.mark.parametrize(
    "put",
    [
        lambda one: [one],
        lambda one: ((one,), "more"),
        lambda one: {"key": [one]},
        lambda one: {one},
        lambda one: [Ballot(counter=one)],
    ],
    ids=["list", "tuple", "dict", "set", "relation"],
)
def test_instances_in_what_is_given_are_put_back(put: Callable[[Counter], Any]) -> None:
    elsewhere.counter = Counter.objects.create(name="hits")

    @retried
    def change(given: Any) -> None:
        seen(elsewhere.counter)
        # Not saved, so that nothing but what was given leads to it.
        elsewhere.counter.value += 1
        Counter.objects.update(value=elsewhere.counter.value)
        attempts.done()

    change(put(elsewhere.counter))
    assert attempts.same
    assert Counter.objects.get().value == 1


def test_relations_and_documents_are_put_back_in_depth() -> None:
    counter = Counter.objects.create(name="hits")
    ballot = Ballot.objects.create(counter=counter, data={"for": ["ada"]})

    @retried
    def change(ballot: Ballot) -> None:
        assert ballot.counter is not None
        attempts.see((state(ballot), state(ballot.counter)))
        ballot.data["for"].append("grace")
        ballot.counter.value += 1
        ballot.counter.save()
        ballot.save()
        attempts.done()

    change(ballot)
    assert attempts.same
    assert Ballot.objects.get().data == {"for": ["ada", "grace"]}
    assert Counter.objects.get().value == 1


def test_what_a_failed_attempt_has_loaded_is_loaded_again() -> None:
    Ballot.objects.create(counter=Counter.objects.create(name="hits"))
    ballot = Ballot.objects.defer("data").get()
    rows = Counter.objects.all()
    prefetched = Counter.objects.prefetch_related("ballot_set").get()
    [first] = prefetched.ballot_set.all()

    @retried
    def change(ballot: Ballot, rows: Any, prefetched: Counter) -> None:
        attempts.see(
            (state(ballot), rows._result_cache, [one.data for one in prefetched.ballot_set.all()])
        )
        assert (ballot.data, ballot.counter) == ({}, rows[0])
        for row in rows:
            row.value += 1
            row.save()
        first.data["a"] = 1
        attempts.done()

    change(ballot, rows, prefetched)
    assert attempts.same, attempts.seen
    assert Counter.objects.get().value == 1


def test_rows_that_a_queryset_had_loaded_before_are_put_back() -> None:
    Counter.objects.create(name="hits")
    rows = Counter.objects.all()
    assert len(rows) == 1

    @retried
    def change(rows: Any) -> None:
        seen(rows[0])
        for row in rows:
            row.value += 1
            row.save()
        attempts.done()

    change(rows)
    assert attempts.same
    assert Counter.objects.get().value == 1


def test_a_deleted_instance_has_its_key_again() -> None:
    @retried
    def delete(note: Note) -> None:
        seen(note)
        note.delete()
        attempts.done()

    delete(Note.objects.create(text="old"))
    assert attempts.same
    assert not Note.objects.exists()


def test_what_bulk_create_has_given_keys_is_created_again() -> None:
    notes = [Note(text="a"), Note(text="b")]

    @retried
    def create(notes: list[Note]) -> None:
        attempts.see([state(note) for note in notes])
        Note.objects.bulk_create(notes)
        attempts.done()

    create(notes)
    assert attempts.same
    assert {note.pk for note in notes} == set(Note.objects.values_list("pk", flat=True))


def test_the_instance_of_a_method_is_put_back() -> None:
    counter = Counter.objects.create(name="hits")

    def hit(self: Counter) -> None:
        seen(self)
        self.value += 1
        self.save()
        attempts.done()

    retried(hit.__get__(counter))()
    assert attempts.same
    assert Counter.objects.get().value == 1


def test_instances_that_the_function_closes_over_are_put_back() -> None:
    counter = Counter.objects.create(name="hits")

    @retried
    def hit() -> None:
        seen(counter)
        counter.value += 1
        counter.save()
        attempts.done()

    hit()
    assert attempts.same
    assert Counter.objects.get().value == 1


@pytest.mark.parametrize("through_a_thread", [False, True])
def test_an_instance_reached_in_another_way_is_as_it_was_when_it_was_first_saved(
    through_a_thread: bool,
) -> None:
    elsewhere.note = Note(text="new")

    def save() -> None:
        elsewhere.note.save()
        elsewhere.note.text += "!"
        elsewhere.note.save()

    @retried
    def create() -> None:
        seen(elsewhere.note)
        if through_a_thread:
            # As a sync view does that calls asynchronous code, which calls the ORM.
            async_to_sync(sync_to_async(save))()
        else:
            save()
        attempts.done()

    create()
    assert attempts.same
    assert [note.text for note in Note.objects.all()] == ["new!"]


def test_an_attempt_inside_another_on_a_second_database_is_undone_with_it(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    other = make_database(server)
    elsewhere.note = Note(text="new")

    @retry_transaction(using=other)
    def inner() -> None:
        elsewhere.note.save(using="default")

    @retried
    def outer() -> None:
        seen(elsewhere.note)
        inner()
        attempts.done()

    outer()
    assert attempts.same
    assert Note.objects.get().pk == elsewhere.note.pk


def test_what_an_attempt_creates_and_drops_is_not_kept_alive() -> None:
    alive: list[int] = []

    @retried
    def create() -> None:
        made = [ref(Note.objects.create(text=str(number))) for number in range(10)]
        gc.collect()
        alive.append(sum(one() is not None for one in made))

    create()
    assert alive == [0]


def test_saves_outside_of_attempts_and_in_other_threads_are_nobody_s_concern() -> None:
    noted: list[object] = []

    @retried
    def wait() -> None:
        def save() -> None:
            noted.append(current.get())

        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
        noted.append(current.get() is not None)

    wait()
    assert noted == [None, True]
    assert current.get() is None


def in_memory() -> File[bytes]:
    return ContentFile(b"for ada", name="paper")


def on_disk() -> File[bytes]:
    # The storage moves it to where it belongs.
    file = TemporaryUploadedFile("paper", "text/plain", 7, None)
    file.write(b"for ada")
    file.seek(0)
    return file


@pytest.mark.parametrize("make_file", [in_memory, on_disk])
def test_a_file_of_an_instance_is_stored_by_the_attempt_that_succeeds(
    make_file: Callable[[], File[bytes]], tmp_path: Path, settings: Any
) -> None:
    settings.MEDIA_ROOT = str(tmp_path)

    @retried
    def store(ballot: Ballot) -> None:
        attempts.see((ballot.paper.name, vars(ballot.paper)["_committed"], ballot.paper.read()))
        ballot.paper.seek(0)
        ballot.save()
        attempts.done()

    paper = make_file()
    ballot = Ballot(paper=paper)
    assert vars(ballot.paper)["_committed"] is False
    store(ballot)
    assert attempts.same
    assert Path(Ballot.objects.get().paper.path).read_bytes() == b"for ada"
    paper.close()


def test_after_the_last_attempt_an_instance_is_as_that_left_it() -> None:
    # As after any other failure: only another attempt needs it as it was.
    @retried
    def create(note: Note) -> None:
        note.save()
        attempts.done()

    attempts.fail = lambda: fail_with("23505")
    note = Note(text="new")
    with pytest.raises(Exception, match="made"):
        create(note)
    assert note.pk is not None


def test_an_instance_that_only_another_one_held_goes_with_the_attempt() -> None:
    gone: list[Any] = []

    @retried
    def create() -> None:
        elsewhere.counter.save()
        child = Note(text="held")
        child.save()
        gone.append(ref(child))
        vars(elsewhere.counter)["latest"] = child
        del child
        attempts.done()

    elsewhere.counter = Counter(name="parent")
    create()
    assert gone[0]() is None
    assert gone[1]() is vars(elsewhere.counter)["latest"]
    assert Note.objects.count() == Counter.objects.count() == 1
