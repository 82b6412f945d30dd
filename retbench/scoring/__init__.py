"""Scoring: rankings into metrics, and metrics into claims that hold."""
