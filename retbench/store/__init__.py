"""Embeddings on disk: their keys, the shards that hold them, and how an interrupted run resumes."""
