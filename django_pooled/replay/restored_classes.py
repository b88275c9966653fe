"""The classes whose objects belong to one call; all their attributes are restored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .object_state import KeptAttributes, keeps

if TYPE_CHECKING:
    from .object_state import Snapshot

__all__: list[str] = []

_CONTEXT_DEPTH = 3
"""From a response to the attributes of what its context names."""

for _name in (
    "django.contrib.messages.storage.base.BaseStorage",
    "django.core.files.uploadhandler.FileUploadHandler",
    "django.core.management.base.BaseCommand",
    "django.db.models.base.Model",
    "django.db.models.base.ModelState",
    "django.db.models.fields.files.FieldFile",
    "django.db.models.query.QuerySet",
    "django.db.models.query.RawQuerySet",
    "django.forms.forms.BaseForm",
    "django.forms.formsets.BaseFormSet",
    "django.forms.utils.ErrorList",
    "django.http.response.HttpResponseBase",
    "django.http.response.ResponseHeaders",
    "django.utils.functional.SimpleLazyObject",
    "django.views.generic.base.View",
    "rest_framework.request.Request",
    "rest_framework.serializers.BaseSerializer",
):
    keeps(_name)(KeptAttributes)


@keeps("pydantic.main.BaseModel")
class KeptPayload(KeptAttributes):
    __slots__ = ()

    def __init__(self, value: Any, snapshot: Snapshot, depth: int) -> None:
        super().__init__(value, snapshot, depth)
        # It tells fields that were sent from defaults, and is not among the attributes.
        snapshot.keep(value.model_fields_set, depth - 1)


@keeps("django.template.response.SimpleTemplateResponse")
class KeptTemplateResponse(KeptAttributes):
    """A response that may still have to be rendered.

    Its context may hold all rows of a page, which rendering only reads: they are not followed, but
    queries that have not been run, forms, and iterators are kept.
    """

    __slots__ = ()

    def __init__(self, value: Any, snapshot: Snapshot, depth: int) -> None:
        super().__init__(value, snapshot, min(depth, _CONTEXT_DEPTH))
