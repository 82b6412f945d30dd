"""Engines: what runs a model, and where its weights come from."""
