"""Robustness: how a trained network classifies changed, corrupted, attacked and overlapping images."""
