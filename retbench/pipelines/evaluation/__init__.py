"""Evaluation: `retbench run`, from names to records."""
