"""Serving: models behind one HTTP endpoint, and a client for it."""
