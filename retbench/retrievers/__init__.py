"""Retrievers: a collection in, a ranking out."""
