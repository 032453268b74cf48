"""Comparisons against peers, each one command that prints a table and writes a CSV and a figure."""
