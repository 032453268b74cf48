"""What to cite for runs: the references, and the rules that say which run needs which."""
