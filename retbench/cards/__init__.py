"""Cards: TOML files that say what a model, a task, a suite or a method is."""
