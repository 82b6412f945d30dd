"""Cards: TOML files that describe models, tasks, suites, methods, recipes and studies."""
