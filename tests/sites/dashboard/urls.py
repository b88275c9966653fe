"""The site's addresses; static files come from the apps, as under runserver."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.contrib.staticfiles.views import serve
from django.db import transaction
from django.urls import include, path

from . import views

_static = transaction.non_atomic_requests(login_not_required(serve))

urlpatterns = [
    path("admin/", admin.site.urls),
    path("pools/", include("django_pooled.dashboard.urls")),
    path("static/<path:path>", _static, {"insecure": True}),
    path("hold/<seconds>", views.hold),
    path("write", views.write),
    path("conflict", views.conflict),
    path("lost", views.lost),
]

handler500 = "django_pooled.middleware.handler500"
