"""URLs of the voting app, and the pages for what goes wrong."""

from __future__ import annotations

from django.urls import path
from votes import views

urlpatterns = [
    path("", views.page, name="page"),
    path("vote/", views.vote, name="vote"),
]

handler400 = "votes.views.bad_request"
handler403 = "votes.views.forbidden"
handler404 = "votes.views.not_found"
handler500 = "django_pooled.middleware.handler500"
