"""Bring the dataset and the source weights that params.yaml names, as verified files."""
