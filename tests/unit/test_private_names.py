"""Private names of Django, psycopg and psycopg_pool are used in the one file there is for each."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.models import QuerySet
from django.http import HttpRequest
from psycopg import Connection, Cursor
from psycopg_pool import ConnectionPool

import django_pooled
from django_pooled.diagnostics.required_names import changed_overrides

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(django_pooled.__file__).parent
PRIVATE = {
    "backend/django_private.py",
    "postgis/django_private.py",
    "replay/django_private.py",
    "retry/asgiref_private.py",
    "pool/psycopg_pipeline.py",
    "pool/psycopg_private.py",
    "pool/psycopg_pool_private.py",
}
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))

THEIRS = (DatabaseWrapper, HttpRequest, QuerySet, Connection, Cursor, ConnectionPool)

# Of other packages, and of the standard library, which documents the first six.
OTHERS = {
    "_asdict": "namedtuple",
    "_fields": "namedtuple",
    "_replace": "namedtuple",
    "_is_gil_enabled": "sys; there from 3.13 on",
    "_getframe": "sys",
    "_fixups": "Celery; a check finds nothing without it",
    "_pytest": "pytest; a test that loads the site would open pools without it",
    "_setting_search_path": "django-tenants",
}
# Theirs, with the reason why it is nowhere else.
EXCEPTIONS = {
    ("activity.py", "_get_response"): "a name of a frame; without it, an activity has no name",
    ("pool/connection.py", "_pool"): "read by a finalizer, when modules may be gone",
}


def parsed(path: str) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text())


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


def is_own(node: ast.expr) -> bool:
    """Tell whether an attribute of *node* belongs to the class that the code is in."""
    if isinstance(node, ast.Call):
        node = node.func
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "super")


def of_other_objects(tree: ast.AST) -> Iterator[str]:
    """Private names in *tree*: attributes of other objects, imports, and texts for getattr()."""
    slots = {
        text
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__"
        for text in ast.walk(node.value)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not is_own(node.value):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in slots:
            yield node.value
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)


@cache
def private_names_of(kind: type) -> set[str]:
    """Return the private names that a class defines or sets on its instances."""
    # Function by function: psycopg's classes pretend to be in another module.
    sources = "".join(map(inspect.getsource, filter(inspect.isfunction, vars(kind).values())))
    found = {*vars(kind), *re.findall(r"\bself\.(_[a-zA-Z]\w*)", sources)}
    return {name for name in found if is_private(name)}


def of_own_objects(tree: ast.AST) -> set[str]:
    """Private names that classes in *tree* give to their own objects, and none of theirs has."""
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_own(node.value)
    }
    return used - set().union(*(private_names_of(base) for kind in THEIRS for base in kind.__mro__))


@pytest.mark.parametrize("path", sorted(set(FILES) - PRIVATE))
def test_private_names_are_left_to_the_file_for_them(path: str) -> None:
    tree = parsed(path)
    found = {name for name in of_other_objects(tree) if is_private(name)}
    known = {name for file, name in EXCEPTIONS if file == path} | OTHERS.keys()
    assert found - of_own_objects(tree) <= known


def test_no_exception_outlives_its_use() -> None:
    used = {(path, name) for path in FILES for name in of_other_objects(parsed(path))}
    assert EXCEPTIONS.keys() <= used
    assert OTHERS.keys() <= {name for _, name in used}


def subclasses() -> Iterator[tuple[str, type, list[type]]]:
    """Classes of the package that are built on theirs, with the file of each, and theirs."""
    for path in FILES:
        if "migrations" in path:
            continue
        try:
            module = import_module(".".join(("django_pooled", *Path(path).with_suffix("").parts)))
        except ImproperlyConfigured:
            # Django's error where GDAL is missing.
            assert path.startswith("postgis/")
            continue
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__:
                theirs = [
                    base
                    for base in kind.__mro__
                    if base.__module__.partition(".")[0] in ("django", "psycopg", "psycopg_pool")
                ]
                if theirs:
                    yield path, kind, theirs


def used_by(kind: type) -> Iterator[str]:
    """Names of methods and fields of a class, and the attributes of itself that it uses."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_own(node.value):
            yield node.attr
        elif isinstance(node, ast.FunctionDef):
            yield node.name


def asked_for() -> set[str]:
    """Return the names without which the package refuses to start."""
    return {
        name
        for path in PRIVATE
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Need"
        for name in ast.literal_eval(node.args[1]).split()
    }


def test_a_class_built_on_theirs_uses_no_private_name_that_is_not_asked_for_at_start_up() -> None:
    asked, found = asked_for(), {}
    for path, kind, theirs in subclasses():
        private = set().union(*map(private_names_of, theirs))
        if left := set(used_by(kind)) & private - asked:
            found[f"{path}: {kind.__name__}"] = left
    assert found == {}


def test_a_method_takes_whatever_the_one_takes_that_it_replaces() -> None:
    changed = {
        told
        for _, kind, theirs in subclasses()
        for base in theirs
        for told in changed_overrides(kind, base)
    }
    assert changed == set()


def test_the_classes_that_are_built_on_theirs_are_looked_at() -> None:
    assert {kind.__name__ for _, kind, _ in subclasses()} >= {
        "DatabaseWrapper",
        "PooledConnection",
        "RecoveringPool",
    }
