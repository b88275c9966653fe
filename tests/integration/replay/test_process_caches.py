"""What Django remembers for the whole process, or thread, of an attempt that was rolled back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import IntegrityError, connection, transaction
from django.test import override_settings
from django.utils import timezone, translation

from django_pooled import retry_transaction
from tests.app.models import Ballot
from tests.support.attempts import attempts, fail_with, retried

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("attempts")]


@pytest.fixture
def unknown_model() -> Iterator[type[Ballot]]:
    """A model whose type of content nobody has made yet."""
    ContentType.objects.filter(model="ballot").delete()
    ContentType.objects.clear_cache()
    yield Ballot
    ContentType.objects.clear_cache()


def permit(model: type[Ballot]) -> Permission:
    kind = ContentType.objects.get_for_model(model)
    return Permission.objects.create(name="may count", codename="count", content_type=kind)


def test_a_type_of_content_made_in_a_failed_attempt_is_made_again(
    unknown_model: type[Ballot],
) -> None:
    @retried
    def allow() -> None:
        permit(unknown_model)
        attempts.done()

    allow()
    assert attempts.number == 2
    assert Permission.objects.get(codename="count").content_type.model == "ballot"


@pytest.mark.parametrize("how", ["error", "raised", "asked"])
def test_a_type_of_content_that_was_rolled_back_for_good_is_not_believed_later(
    unknown_model: type[Ballot], how: str
) -> None:
    class OutOfPaper(Exception):
        pass

    @retry_transaction
    def allow() -> None:
        permit(unknown_model)
        if how == "error":
            fail_with("23514")
        elif how == "raised":
            raise OutOfPaper
        transaction.set_rollback(True)

    try:
        allow()
    except (IntegrityError, OutOfPaper):
        assert how != "asked"
    assert permit(unknown_model).content_type.model == "ballot"


def test_what_was_committed_is_remembered_on(unknown_model: type[Ballot]) -> None:
    retry_transaction(permit)(unknown_model)
    with connection.execute_wrapper(refuse):
        assert ContentType.objects.get_for_model(unknown_model).model == "ballot"


def refuse(*args: Any) -> None:
    raise AssertionError("a query")


@pytest.fixture
def site() -> Iterator[Any]:
    """A site of django.contrib.sites."""
    with override_settings(
        INSTALLED_APPS=["django.contrib.sites", "django.contrib.contenttypes", "tests.app"],
        SITE_ID=7,
    ):
        from django.contrib.sites.models import Site

        with connection.schema_editor() as editor:
            editor.create_model(Site)
        try:
            yield Site.objects.create(pk=7, domain="example.org", name="before")
        finally:
            Site.objects.clear_cache()
            with connection.schema_editor() as editor:
                editor.delete_model(Site)


def test_a_site_changed_in_a_failed_attempt_is_read_again(site: Any) -> None:
    sites = type(site).objects
    assert sites.get_current().name == "before"

    @retry_transaction
    def rename() -> None:
        sites.filter(pk=7).update(name="after")
        sites.clear_cache()
        assert sites.get_current().name == "after"
        fail_with("23514")

    with pytest.raises(IntegrityError):
        rename()
    assert sites.get_current().name == "before"


@pytest.mark.parametrize("before", ["de", "en-gb", None])
def test_each_attempt_begins_in_the_same_language_and_time_zone(before: str | None) -> None:
    @retried
    def greet() -> None:
        attempts.see((translation.get_language(), timezone.get_current_timezone_name()))
        translation.activate("fr")
        timezone.activate("Asia/Tokyo")
        attempts.done()

    with translation.override(before), timezone.override("Europe/Berlin"):
        greet()
        # What the attempt that succeeded has activated stays.
        assert translation.get_language() == "fr"
        assert timezone.get_current_timezone_name() == "Asia/Tokyo"
    assert attempts.seen == [(before, "Europe/Berlin")] * 2
