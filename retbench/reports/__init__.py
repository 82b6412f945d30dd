"""Reports: boards from records; no torch, no network."""
