"""Differences between settings, on the same images: with intervals, tests and a forest plot."""
