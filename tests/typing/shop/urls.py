"""Decorated views in a URLconf."""

from __future__ import annotations

from django.urls import path

from shop import views

handler500 = "django_pooled.middleware.handler500"

urlpatterns = [
    path("pay/<int:number>/", views.pay),
    path("renumber/", views.renumber),
    path("unpaid/", views.unpaid),
    path("pay-view/<int:number>/", views.Pay.as_view()),
    path("create/", views.Create.as_view()),
    path("at-once/", views.at_once),
]
