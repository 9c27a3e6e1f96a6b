"""Promote a nightly's model: judge it against the promoted one, register it as a version."""
