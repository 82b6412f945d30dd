"""Collections: corpus, queries and judgments, read from any source and stored memory-mapped."""
