"""The command line: one file a verb. Heavy packages are imported inside the verbs, so that --help answers at once."""
