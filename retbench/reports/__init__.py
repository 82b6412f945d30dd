"""Reports: leaderboards built from records, without torch and without a network."""
