"""A model for the views to write to."""

# django-stubs leaves it to its plugin for mypy to find the types of a field.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false

from __future__ import annotations

from django.db import models


class Order(models.Model):
    number = models.IntegerField(unique=True)
    paid = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"order {self.number}"
