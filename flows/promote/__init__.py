"""Promote a nightly's model: judge it against the promoted one, and register it as a version that DVC's registry tools read."""
