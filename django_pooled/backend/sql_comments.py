"""A comment at the end of each statement that names the view or task that runs it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from django_pooled.activity import current

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Commenter", "comment_of"]

# What an activity's name begins with where it is no view; see activity.py.
_KINDS = {"celery ": "task", "manage.py ": "command"}


@lru_cache(maxsize=1024)
def comment_of(app: str | None, activity: str | None) -> str:
    """Return a comment that names the application and its activity; "" without either.

    In the format of https://google.github.io/sqlcommenter/spec/: keys in order, values URL-encoded
    and in quotes. So nothing in a name can end the comment, and none of it has a space, a
    semicolon or a parenthesis in it.

    Args:
        app: The name that the option ``sql_comments`` gives the application, if it does.
        activity: As in ``activity.current``.
    """
    pairs = {"app": app}
    if activity is not None:
        prefix = next((known for known in _KINDS if activity.startswith(known)), "")
        pairs[_KINDS.get(prefix, "view")] = activity.removeprefix(prefix)
    told = [f"{key}='{quote(value, safe='')}'" for key, value in sorted(pairs.items()) if value]
    return f" /*{','.join(told)}*/" if told else ""


class Commenter:
    """Puts the comment on each statement that goes through Django's cursors.

    It is one of Django's execute wrappers, which a connection has or has not: where it has none,
    nothing is asked of any statement.
    https://docs.djangoproject.com/en/stable/topics/db/instrumentation/

    Args:
        app: Name of the application, None for no name.
    """

    def __init__(self, app: str | None) -> None:
        self._app = app

    def __call__(
        self,
        execute: Callable[[Any, Any, bool, dict[str, Any]], Any],
        sql: Any,
        params: Any,
        many: bool,
        context: dict[str, Any],
    ) -> Any:
        """Run a statement, with the comment if it is text and has no other one.

        Args:
            execute: Runs it.
            sql: The statement. What psycopg composes of parts stays as it is.
            params: Its parameters.
            many: Whether it is run once for each set of parameters.
            context: Django's connection and cursor.
        """
        comment = comment_of(self._app, current.get())
        # The format does not allow comments within comments, and after "--" this one would be part
        # of the other.
        if comment and isinstance(sql, str) and "--" not in sql and "/*" not in sql:
            # Where there are parameters, "%" begins a placeholder.
            sql += comment if params is None else comment.replace("%", "%%")
        return execute(sql, params, many, context)
