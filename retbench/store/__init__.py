"""Embeddings on disk: what names them, how they are written so that none is lost, how a run resumes."""
