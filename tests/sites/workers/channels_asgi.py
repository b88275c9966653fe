"""The site for asynchronous servers, with websockets and an event stream of Channels."""

from __future__ import annotations

from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path, re_path

# First: it sets Django up.
from .asgi import application as django_application

# isort: split
from .consumers import Events, Messages, SynchronousMessages

websockets = [
    path("messages", Messages.as_asgi()),
    path("sync-messages", SynchronousMessages.as_asgi()),
]
http = [
    path("channels/events/<int:count>", Events.as_asgi()),
    re_path("", django_application),  # type: ignore[arg-type]
]
application = ProtocolTypeRouter({"http": URLRouter(http), "websocket": URLRouter(websockets)})
