from __future__ import annotations

from typing import Any

import pytest

from django_pooled import retry_transaction
from tests.app.models import Note
from tests.support.attempts import attempts, retried

celery = pytest.importorskip("celery", reason="celery is not installed")


@pytest.fixture
def app() -> Any:
    """A Celery application whose tasks run where they are sent."""
    made = celery.Celery("replay", task_cls="celery.contrib.django.task:DjangoTask")
    made.conf.update(task_always_eager=True, task_eager_propagates=True, broker_url="memory://")
    return made


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("attempts")
def test_a_task_of_a_retried_function_sends_what_waits_for_the_commit_once(app: Any) -> None:
    announced: list[int] = []

    @app.task
    def announce(number: int) -> None:
        announced.append(number)

    @app.task
    @retried
    def vote(texts: list[str]) -> int:
        attempts.see(list(texts))
        Note.objects.create(text=texts.pop())
        announce.delay_on_commit(attempts.number + 1)
        return attempts.done()

    assert vote.delay(["vote"]).get() == 2
    assert attempts.same
    assert announced == [2]
    assert [note.text for note in Note.objects.all()] == ["vote"]


def test_a_task_is_refused_at_decoration_with_the_right_order(app: Any) -> None:
    @app.task
    def another() -> None: ...

    @celery.shared_task
    def shared() -> None: ...

    for task in (another, shared):
        with pytest.raises(TypeError, match="write @retry_transaction below @shared_task"):
            retry_transaction(task)


def test_a_task_of_django_is_refused_at_decoration_with_the_right_order() -> None:
    tasks = pytest.importorskip("django.tasks", reason="Django 6.0 brings tasks")

    with pytest.raises(TypeError, match="write @retry_transaction below @task"):
        retry_transaction(tasks.task(a_function))
    assert tasks.task(retry_transaction(a_function)).name == "a_function"


def a_function() -> None:
    """Do nothing."""
