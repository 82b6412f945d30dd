"""mteb bridge: a model inside mteb, and results to and from mteb's format."""
