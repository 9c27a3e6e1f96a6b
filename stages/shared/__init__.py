"""What at least two stages import."""
