"""Sweep over settings: a grid or a list, with several seeds, as DVC experiments."""
