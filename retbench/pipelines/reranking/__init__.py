"""Reranking: a ranking in, a ranking out."""
