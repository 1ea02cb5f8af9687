"""Serving trained networks: the demo page."""
