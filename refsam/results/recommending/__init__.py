"""Which model, strategy and resource to take: from own results, fits and published tables."""
