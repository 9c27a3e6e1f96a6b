"""Modules that at least two stages import."""
