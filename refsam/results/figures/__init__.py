"""Figures for a paper, a file for each kind; `page` has what they share, `draw` makes what is asked for."""
