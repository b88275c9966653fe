"""Decorated views in a URLconf."""

from __future__ import annotations

from django.urls import path

from django_pooled import no_retry
from django_pooled.urls import retry_requests
from shop import views

handler500 = "django_pooled.middleware.handler500"

no_retry(views.unpaid)
no_retry(views.Pay)

urlpatterns = retry_requests(
    [
        path("pay/<int:number>/", views.pay),
        path("renumber/", views.renumber),
        path("unpaid/", views.unpaid),
        path("pay-view/<int:number>/", views.Pay.as_view()),
        path("create/", views.Create.as_view()),
        path("at-once/", views.at_once),
    ],
    methods="all",
    max_attempts=4,
)
