"""Every public name, file and folder says what it is: in its docstring and in docs."""

from __future__ import annotations

import argparse
import ast
import inspect
import pkgutil
import re
from configparser import ConfigParser
from ctypes.util import find_library
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import django_pooled
from django_pooled.management.commands.poolstats import Command
from django_pooled.pool import options
from tests.support.public_names import NAMES, WHOLE_MODULES, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

PACKAGE = Path(django_pooled.__file__).parent
DOCS = PACKAGE.parent / "docs"
GDAL = find_library("gdal") is not None
MODULES = [
    found.name
    for found in pkgutil.walk_packages(django_pooled.__path__, "django_pooled.")
    # Django imports its own part of that only where GDAL is installed.
    if GDAL or not found.name.startswith("django_pooled.postgis.")
]
MODULES_WITH_NAMES = [
    name
    for name in MODULES
    # The inside of a command is imported by nobody else.
    if hasattr(import_module(name), "__all__")
]
FUNCTIONS_OF_THE_PAGE = [name for name in NAMES if inspect.isfunction(resolve(name))]
CLASSES_OF_THE_PAGE = [name for name in NAMES if inspect.isclass(resolve(name))]


def members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield classes, functions, methods and properties that are defined in a module for others."""
    for name in module.__all__:
        found = getattr(module, name)
        if getattr(found, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(found):
            yield name, found
            for inner, member in methods(found):
                yield f"{name}.{inner}", member
        elif callable(found):
            yield name, found


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public ones, except those whose description is a base class's."""
    for name, member in vars(cls).items():
        described = any(name in vars(base) for base in cls.__mro__[1:])
        if name.startswith("_") or described:
            continue
        if isinstance(member, (classmethod, staticmethod)):
            yield name, member.__func__
        elif inspect.isfunction(member) or isinstance(member, property):
            yield name, member


def arguments(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def described(owner: Any) -> str:
    """Return a docstring; of a class also what stands below its attributes."""
    text = inspect.getdoc(owner) or ""
    if inspect.isclass(owner):
        text += " ".join(attributes(owner))
    return text


def attributes(cls: type) -> dict[str, str]:
    """Return the text below each attribute that has one, by the attribute's name."""
    (tree,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for line, following in zip(tree.body, tree.body[1:], strict=False):
        text = following.value if isinstance(following, ast.Expr) else None
        if isinstance(line, ast.AnnAssign) and isinstance(text, ast.Constant):
            found[ast.unparse(line.target)] = str(text.value)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is(name: str) -> None:
    module = import_module(name)
    assert module.__file__ is not None
    is_empty = Path(module.__file__).stat().st_size == 0
    is_written_by_django = ".migrations." in name
    assert is_empty or is_written_by_django or module.__doc__


@pytest.mark.parametrize("name", MODULES_WITH_NAMES)
def test_what_a_module_has_for_others_has_a_docstring(name: str) -> None:
    assert [inner for inner, found in members(import_module(name)) if not found.__doc__] == []


@pytest.mark.parametrize("name", FUNCTIONS_OF_THE_PAGE)
def test_a_public_function_describes_its_arguments(name: str) -> None:
    function: Any = resolve(name)
    assert [it for it in arguments(function) if not re.search(rf"\b{it}\b", function.__doc__)] == []


@pytest.mark.parametrize("name", CLASSES_OF_THE_PAGE)
def test_a_public_class_describes_its_attributes_and_the_arguments_of_its_methods(
    name: str,
) -> None:
    cls: Any = resolve(name)
    text = described(cls)
    undescribed = [it for it in inspect.get_annotations(cls) if not re.search(rf"\b{it}\b", text)]
    for inner, method in methods(cls):
        if inspect.isfunction(method):
            undescribed += [
                f"{inner}({it})"
                for it in arguments(method)
                if not re.search(rf"\b{it}\b", method.__doc__ or "")
            ]
    assert [it for it in undescribed if not it.startswith("_")] == []


@pytest.mark.parametrize("option", [field.name for field in fields(options.PoolOptions)])
def test_an_option_of_the_pool_says_what_it_is(option: str) -> None:
    assert option in attributes(options.PoolOptions)


def test_each_option_of_poolstats_has_a_help_text() -> None:
    parser = argparse.ArgumentParser()
    Command().add_arguments(parser)
    assert [action.dest for action in parser._actions if not action.help] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_page_is_there(name: str) -> None:
    assert resolve(name)


def test_the_page_holds_all_names_of_the_public_modules() -> None:
    names = {f"{module}.{it}" for module in WHOLE_MODULES for it in import_module(module).__all__}
    # Once is enough for what the package hands on.
    handed_on = {f"django_pooled.errors.{name}" for name in django_pooled.__all__}
    assert names - handed_on <= set(NAMES)


def test_the_api_page_describes_each_name() -> None:
    page = (DOCS / "api.md").read_text("utf-8")
    described = set(re.findall(r"^\.\. auto\w+:: (\S+)$", page, re.MULTILINE))
    assert set(NAMES) <= described
    # Beside them, modules for what their docstrings say.
    assert described - set(NAMES) <= set(WHOLE_MODULES)


def test_the_page_on_architecture_names_each_folder_and_file_of_the_top() -> None:
    page = (DOCS / "architecture.md").read_text("utf-8")
    named = re.findall(r"^[├└]── (\S+)", page, re.MULTILINE)
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert sorted(named) == sorted(folders | files)
    # From top to bottom, as the layers are in setup.cfg.
    contracts = ConfigParser()
    contracts.read(DOCS.parent / "setup.cfg", "utf-8")
    lines = contracts["importlinter:contract:layers"]["layers"].split("\n")
    layer = {it: number for number, line in enumerate(lines) for it in re.findall(r"\w+", line)}
    layers = [layer[name.removesuffix("/").removesuffix(".py")] for name in named]
    assert layers == sorted(layers)


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_a_page_names_files_that_exist(page: str) -> None:
    text = (DOCS.parent / page).read_text("utf-8")
    named = re.findall(r"`((?!tests/)\w+/(?:\w+\.py)?)`", text)
    assert len(named) > 5
    assert [path for path in named if not (PACKAGE / path).exists()] == []


def test_the_pages_name_tests_and_benchmarks_that_exist() -> None:
    root = DOCS.parent
    pages = [*root.glob("*.md"), *DOCS.rglob("*.md"), root / "benchmarks" / "README.md"]
    named = {
        path
        for page in pages
        for path in re.findall(
            r"\b(?:tests|benchmarks)/\w[\w/]*(?:\.\w+)?", page.read_text("utf-8")
        )
    }
    assert len(named) > 10
    # The index names pages without ".md".
    missing = {it for it in named if not any((root / (it + end)).exists() for end in ("", ".md"))}
    assert missing == set()
