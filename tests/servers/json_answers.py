"""JSON as the answer of an HTTP server of the tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

__all__ = ["send_json"]


def send_json(handler: BaseHTTPRequestHandler, answer: object) -> None:
    """Answer the request of a handler with status 200."""
    body = json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
