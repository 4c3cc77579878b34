"""Measurements: one script per question, each of which validates what it runs before it times it."""
