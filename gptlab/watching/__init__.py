"""Runs in a browser while they train: curves, samples, and what their newest checkpoint looks like inside."""
