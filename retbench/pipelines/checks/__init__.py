"""Checks: a run is verified by external evaluators and by another engine."""
