"""The run directory: who writes what where, and how it survives crashes. Needs no torch and no scheduler."""
