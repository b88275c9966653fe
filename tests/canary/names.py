"""The names of other packages that this one uses, and what each of them is in what is installed."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from django.core.exceptions import ImproperlyConfigured

import django_pooled
from django_pooled.diagnostics import required_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

    from django_pooled.diagnostics.required_names import Need

__all__ = ["Findings", "Name", "described", "look", "missing_imports"]

PACKAGE = Path(django_pooled.__file__).parent

THEIRS = ("asgiref", "django", "psycopg", "psycopg_pool", "tenacity")
"""The packages whose public names are looked for too."""


class Name(NamedTuple):
    """A private name, as it is in what is installed."""

    kind: str
    """Its type, or "gone"."""
    takes: str | None = None
    """The names of its arguments, if it is called; those with a default end in "=…"."""
    code: str | None = None
    """A digest of its code, without comments, annotations and docstrings."""


class Findings(NamedTuple):
    """What was found of all names."""

    names: dict[str, dict[str, Name]]
    """By distribution and name."""
    purposes: dict[str, str]
    """What each name is needed for."""
    errors: list[str]
    """Of modules that cannot be imported."""


def look() -> Findings:
    """Ask for the names that each module of the package asks for, whatever has become of them.

    Must be called in a process that has not imported those modules yet.
    """
    asked: list[tuple[str, Need]] = []
    errors: list[str] = []

    def note(distribution: str, needs: Iterable[Need]) -> None:
        asked.extend((distribution, need) for need in needs)

    # These refuse the first package that lacks a name; here all names of all packages are wanted.
    required_names.require = note
    required_names.require_overrides = lambda distribution, ours, theirs: None
    for path in sorted(PACKAGE.rglob("*.py")):
        if "required_names import" in path.read_text(encoding="utf-8"):
            module = ".".join(("django_pooled", *path.relative_to(PACKAGE).with_suffix("").parts))
            try:
                import_module(module)
            except required_names.UnsupportedRelease as error:
                errors.append(str(error).partition(". ")[0])
            except ImproperlyConfigured:
                # Django's error where GDAL is missing; the refusal of a name is turned off.
                continue
            except Exception as error:
                errors.append(f"{module} cannot be imported: {error!r}")

    names: dict[str, dict[str, Name]] = {}
    purposes = {}
    for distribution, need in asked:
        for name in need.names.split():
            title = f"{required_names.title_of(need.owner)}.{name}"
            names.setdefault(distribution, {})[title] = described(need.owner, name)
            purposes[title] = need.purpose
    return Findings(names, purposes, errors)


def described(owner: object, name: str) -> Name:
    """Describe a name of *owner*, as `Need` has it."""
    if not hasattr(owner, name):
        used = inspect.isfunction(owner) and name in owner.__code__.co_names
        return Name("used" if used else "gone")
    value = getattr(owner, name)
    node = _definition(owner, name, value)
    if node is None:
        return Name(type(value).__name__)
    # Whether a function was compiled, or is bound to an object, does not matter here.
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    return Name(kind, _arguments(node), hashlib.sha256(_code(node).encode()).hexdigest()[:12])


def _definition(
    owner: object, name: str, value: object
) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
    try:
        source = inspect.getsource(value)  # type: ignore[arg-type]
    except (TypeError, OSError):
        # Compiled, as in psycopg_c; what it stands for is in the module too.
        if not inspect.ismodule(owner):
            return None
        definitions = _definitions(owner)
        return definitions.get(name)
    return next(_defined(ast.parse(textwrap.dedent(source))), None)


@cache
def _definitions(
    module: ModuleType,
) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    return {node.name: node for node in _defined(ast.parse(inspect.getsource(module)))}


def _defined(
    tree: ast.Module,
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def _arguments(node: ast.AST) -> str | None:
    if isinstance(node, ast.ClassDef):
        made = (each for each in node.body if getattr(each, "name", None) == "__init__")
        return next((_arguments(each) for each in made), None)
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    arguments = node.args
    told = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    optional = len(arguments.defaults)
    told = told[: len(told) - optional] + [f"{each}=…" for each in told[len(told) - optional :]]
    if arguments.posonlyargs:
        told.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg is not None:
        told.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        told.append("*")
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        told.append(each.arg if default is None else f"{each.arg}=…")
    if arguments.kwarg is not None:
        told.append(f"**{arguments.kwarg.arg}")
    return ", ".join(told)


class _Bare(ast.NodeTransformer):
    """Leaves out what has no effect: docstrings and annotations."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return ast.Assign([node.target], node.value or ast.Constant(...), lineno=0)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def _code(node: ast.AST) -> str:
    return ast.unparse(_Bare().visit(node))


def missing_imports(package: Path = PACKAGE) -> list[str]:
    """Return the public names that a package imports of others and that are not there."""
    distributions = packages_distributions()
    missing = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                root = node.module.partition(".")[0]
                if root in THEIRS:
                    lost = _lost(node.module, [alias.name for alias in node.names])
                    [distribution, *_] = distributions.get(root, [root])
                    missing |= {f"{distribution}: {each} is gone" for each in lost}
    return sorted(missing)


def _lost(module: str, names: list[str]) -> Iterator[str]:
    try:
        found = import_module(module)
    except ModuleNotFoundError:
        yield module
        return
    except ImproperlyConfigured:
        # GDAL, for one, is not installed.
        return
    for name in names:
        if not hasattr(found, name) and not (
            hasattr(found, "__path__") and find_spec(f"{module}.{name}")
        ):
            yield f"{module}.{name}"
