"""Data sets as files: finding, pairing, reading, checking and preparing them. Needs no torch."""
