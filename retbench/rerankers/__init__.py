"""Rerankers: a ranking in, a ranking out."""
