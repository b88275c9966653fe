"""The documentation as a site: the Markdown files as they are, and the docstrings.

    tox -e docs

The source folder is the project's root, so that links between README.md, docs/ and benchmarks/ work
on the site as they do in a repository browser.
"""

from __future__ import annotations

import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import django
from django.conf import settings

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import django_pooled  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# The docstrings are in modules that import Django's models and settings. Nothing connects.
settings.configure(
    DATABASES={"default": {"ENGINE": "django_pooled", "NAME": "docs"}},
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django_pooled",
        "django_pooled.dashboard",
    ],
)
django.setup()

project = "django_pooled"
author = "the django_pooled authors"
project_copyright = author
version = release = django_pooled.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "docs/**.md",
    "example_project/README.md",
]
exclude_patterns = [".*", "build", "dist"]

myst_heading_anchors = 3
# Highlighting is for code; sessions and layouts are shown as they are.
highlight_language = "text"

default_role = "py:obj"
nitpicky = True
# Names of Python, Django and psycopg: their inventories would have to be fetched at each build.
nitpick_ignore_regex = [
    ("py:(class|exc|data)", r"(?!django_pooled\b).*"),
    ("py:class", r"django_pooled\..*\.[A-Z]"),  # type variables
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "django_pooled"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_site"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def _of_no_toctree(app: Sphinx, docname: str, source: list[str]) -> None:
    """Mark the pages of single results: the page of all results links to them."""
    if docname.startswith("benchmarks/results/") and not docname.endswith("README"):
        source[0] = "---\norphan: true\n---\n\n" + source[0]


def _without_constructor(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Show classes by name alone, unless users make their objects: those are dataclasses."""
    hidden = signature and isinstance(obj, type) and not is_dataclass(obj)
    return ("", "") if hidden else (signature, returns)


def setup(app: Sphinx) -> None:
    app.connect("source-read", _of_no_toctree)
    app.connect("autodoc-process-signature", _without_constructor)
