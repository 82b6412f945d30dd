"""Collections: corpus, queries and judgments, read from any source into one memory-mapped form."""
