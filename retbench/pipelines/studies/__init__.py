"""Studies: a plan of models, methods and tasks is run, trained and summarised."""
