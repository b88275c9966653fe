"""URLs of the voting app, and the pages for what goes wrong."""

from __future__ import annotations

from django.conf import settings
from django.contrib.staticfiles.views import serve
from django.urls import include, path
from operators import views as operators
from votes import views

from django_pooled.urls import retry_requests

urlpatterns = [
    # Every page that reads or writes votes, also one that is added and not decorated.
    *retry_requests(
        [
            path("", views.page, name="page"),
            path("vote/", views.vote, name="vote"),
        ]
    ),
    # These have to answer while the database is away.
    path("pools/enter/", operators.enter, name="enter"),
    *([path("pools/", include("faults.urls"))] if settings.DEBUG else []),
    path("pools/", include("django_pooled.dashboard.urls")),
    # A site of its own would have a web server or WhiteNoise do that.
    path("static/<path:path>", serve, {"insecure": True}),
]

handler400 = "votes.views.bad_request"
handler403 = "votes.views.forbidden"
handler404 = "votes.views.not_found"
handler500 = "django_pooled.middleware.handler500"
