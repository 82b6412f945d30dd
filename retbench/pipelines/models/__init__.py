"""Models: a named model, ready to encode, and the workers that compute its vectors."""
