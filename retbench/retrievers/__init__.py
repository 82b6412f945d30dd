"""Retrievers: search a collection and return a ranking."""
