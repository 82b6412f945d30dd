"""What every other folder stands on: the user's configuration, files, locks, checksums, TOML and HTTP."""
