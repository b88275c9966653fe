"""What is used of asgiref's inside is as it is taken to be."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.local import Local
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async

from django_pooled.retry.asgiref_private import (
    ServingThread,
    adopt,
    is_same,
    served_by,
    transplanted,
    usual_executor,
    usual_thread,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

thread_of = sync_to_async(threading.get_ident)


async def assert_is_foretold() -> None:
    # In a thread that there is not yet, nothing is foretold; the executor is the one.
    executor = usual_executor()
    found = await thread_of()
    thread = usual_thread()
    assert thread is not None
    assert thread.ident == found
    assert await asyncio.wrap_future(executor.submit(threading.get_ident)) == found


async def in_a_context() -> None:
    async with ThreadSensitiveContext():
        assert usual_thread() is None
        await assert_is_foretold()


async def in_a_task() -> None:
    await asyncio.create_task(assert_is_foretold())


async def in_a_task_that_knows_only_its_loop() -> None:
    task = contextvars.Context().run(asyncio.ensure_future, assert_is_foretold())
    await task


@pytest.mark.parametrize("call", [asyncio.run, lambda made: async_to_sync(lambda: made)()])
@pytest.mark.parametrize(
    "situation",
    [assert_is_foretold, in_a_context, in_a_task, in_a_task_that_knows_only_its_loop],
)
@pytest.mark.filterwarnings("ignore:async_to_sync was passed")
def test_the_thread_of_synchronous_code_is_foretold(
    situation: Callable[[], Coroutine[Any, Any, None]],
    call: Callable[[Coroutine[Any, Any, None]], object],
) -> None:
    if situation is in_a_context and call is not asyncio.run:
        pytest.skip("the thread that called counts there")
    call(situation())


def test_a_thread_serves_the_tasks_that_are_given_to_it_and_no_others() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[ServingThread] = loop.create_future()
        over: Future[None] = Future()
        idents = []

        def serve() -> None:
            thread = ServingThread("it is over")
            idents.append(threading.get_ident())
            loop.call_soon_threadsafe(made.set_result, thread)
            thread.run_until_future(over)

        threading.Thread(target=serve, daemon=True).start()
        thread = await made

        async def served() -> int:
            with served_by(thread):
                first, second = await asyncio.gather(thread_of(), asyncio.create_task(thread_of()))
                assert first == second
                return first

        mine, others = await asyncio.gather(served(), thread_of())
        assert [mine] == idents
        assert others != mine
        over.set_result(None)
        with served_by(thread), pytest.raises(RuntimeError, match="it is over"):
            await thread_of()
        assert await thread_of() == others

    asyncio.run(main())


def test_a_local_follows_to_another_thread() -> None:
    local, variable = Local(), contextvars.ContextVar("variable", default=0)
    local.value = 7
    variable.set(7)
    context = contextvars.copy_context()
    seen = []

    def there() -> None:
        adopt(contextvars.copy_context())
        seen.extend([local.value, variable.get()])
        seen.append(
            all(is_same(value, context[key]) for key, value in contextvars.copy_context().items())
        )
        local.value = 8
        seen.append(
            all(is_same(value, context[key]) for key, value in contextvars.copy_context().items())
        )

    thread = threading.Thread(target=context.copy().run, args=[there])
    thread.start()
    thread.join(10.0)
    assert seen == [7, 7, True, False]
    assert transplanted(3) == 3
