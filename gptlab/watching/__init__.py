"""Runs in a browser while they train: curves, samples, and what their checkpoints look like inside."""
