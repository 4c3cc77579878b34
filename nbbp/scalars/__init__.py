"""Formulas of single numbers: functions, activations, loss terms, update rules and random numbers."""
