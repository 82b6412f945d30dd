"""Engines: run a model, and get its weights."""
