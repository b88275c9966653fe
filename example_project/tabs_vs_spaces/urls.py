"""URLs of the voting app, and the pages for what goes wrong."""

from __future__ import annotations

from django.conf import settings
from django.contrib.staticfiles.views import serve
from django.urls import include, path
from operators import views as operators
from psycopg import IsolationLevel
from votes import views

from django_pooled.urls import retry_requests

urlpatterns = [
    # Pages that read do so from one snapshot, and are restarted. A vote is decorated itself.
    *retry_requests(
        [
            path("", views.page, name="page"),
            path("vote/", views.vote, name="vote"),
        ],
        isolation_level=IsolationLevel.REPEATABLE_READ,
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
