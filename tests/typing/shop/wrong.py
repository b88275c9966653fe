"""Wrong uses: each line is an error, or the comment that expects one is.

mypy reads the first comment (``warn_unused_ignores``), pyright the second
(``reportUnnecessaryTypeIgnoreComment``).
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

from django_pooled import Backoff, PoolExhausted, retry_deadline, retry_transaction, run_transaction
from django_pooled.testing import fail_next_transaction


@retry_transaction
def pay(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(str(number))


@retry_transaction(attempts=3)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
def misnamed() -> None: ...


@retry_transaction(max_attempts="3")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def text_for_a_number() -> None: ...


@retry_transaction(deadline=None)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def no_deadline() -> None: ...


@retry_transaction(isolation_level="serializable")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def text_for_a_level() -> None: ...


@retry_transaction(commit_check=lambda: "yes")  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
def text_for_an_answer() -> None: ...


@retry_transaction(backoff=0.5)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def number_for_a_backoff() -> None: ...


def calls(request: HttpRequest) -> tuple[int, str]:
    pay(request, "7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pay(request)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    pay(request, 7, by=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    lost: int = pay(request, 7)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    run_transaction(pay)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    run_transaction(lambda: 1, retries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    number: str = run_transaction(lambda: 1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    retry_transaction("default")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    with retry_deadline("2 s"):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass
    with retry_deadline():  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        pass
    with fail_next_transaction(40001):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass
    with fail_next_transaction(phase="end"):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass
    Backoff(first=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Backoff().initial = 0.2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    Backoff(initial="0.1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return lost, number


def handle(error: PoolExhausted) -> None:
    error.gauges.size = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
