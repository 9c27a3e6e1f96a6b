"""A recipe's checkpoint on the test split, once: metrics with 95 % intervals, and every prediction."""
