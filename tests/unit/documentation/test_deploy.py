"""What the pages of docs/deploy show is accepted, and their links within the project lead there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from django_pooled.backend.options import parse
from django_pooled.base import DatabaseWrapper

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "deploy"
PAGES = sorted(path.name for path in FOLDER.glob("*.md"))
PLATFORMS = ["aws.md", "azure.md", "heroku.md", "neon.md", "supabase.md"]
URL = "postgres://shop:secret@db.example:5432/shop"


def token() -> str:
    """Stand for the recipes of docs/credentials.md."""
    return "a token"


def blocks(page: str, language: str) -> list[str]:
    text = (FOLDER / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as the site and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("page", PLATFORMS)
def test_the_settings_of_a_platform_are_accepted(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "heroku.md":
        pytest.importorskip("dj_database_url", reason="dj-database-url is not installed")
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    shown: dict[str, Any] = {"os": os, "rds_token": token, "azure_token": token}
    code = next(block for block in blocks(page, "python") if "DATABASES" in block)
    exec(compile(code, page, "exec"), shown)
    for alias, entry in shown["DATABASES"].items():
        parse(alias, entry)
        complete = {**settings.DATABASES["default"], "PASSWORD": "", **entry}
        parameters = DatabaseWrapper(complete, alias).get_connection_params()
        assert parameters["host"].split(".")[-1] in ("com", "tech", "example")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_and_to_headings(page: str) -> None:
    text = (FOLDER / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            assert target.startswith("https://"), target
            continue
        name, _, anchor = target.partition("#")
        path = (FOLDER / name).resolve() if name else FOLDER / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_table_and_the_site_name_every_page() -> None:
    table = (FOLDER / "README.md").read_text("utf-8")
    index = (FOLDER.parent / "index.md").read_text("utf-8")
    for page in PAGES:
        if page != "README.md":
            assert f"]({page})" in table
            assert f"\ndeploy/{page.removesuffix('.md')}\n" in index
