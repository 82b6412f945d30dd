"""Pipelines: the stories of retbench, told from top to bottom."""
