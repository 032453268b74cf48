"""Tables for the terminal and for a paper, of the rows that refsam.results.collect makes."""
