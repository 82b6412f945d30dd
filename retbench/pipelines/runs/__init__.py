"""Runs: finished runs are recorded, read back, compared and inspected."""
