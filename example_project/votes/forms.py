"""The ballot."""

from __future__ import annotations

from django import forms

from .models import Candidate


class BallotForm(forms.Form):
    """One vote, as the page's form or any other client sends it."""

    token = forms.UUIDField(
        error_messages={
            "required": "The ballot has no token. Load the page again and vote there.",
            "invalid": "The ballot's token is not a UUID. Load the page again and vote there.",
        }
    )
    candidate = forms.ChoiceField(
        choices=Candidate.choices,
        error_messages={
            "required": "The ballot names no candidate. Vote for “tabs” or “spaces”.",
            "invalid_choice": "Nobody of that name is standing. Vote for “tabs” or “spaces”.",
        },
    )
