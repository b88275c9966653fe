"""Packages of others on this engine, with the settings that docs/third_parties.md shows."""
