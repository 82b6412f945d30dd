"""Rerankers: they take a ranking and return it in a new order."""
