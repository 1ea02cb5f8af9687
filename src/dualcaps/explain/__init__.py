"""Explanations: pictures and numbers computed from a trained network."""
