"""The tests, in folders by what they need; CONTRIBUTING.md says how to run them."""

from __future__ import annotations
