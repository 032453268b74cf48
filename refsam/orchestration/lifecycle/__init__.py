"""How an attempt begins and ends: what was seen of it, why it ended, and what follows."""
