"""Scoring: metrics of rankings, and significance of differences."""
