"""Pipelines: one folder per capability, and one module for each small command."""
