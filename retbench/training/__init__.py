"""Training: a recipe, a backbone and pairs become a checkpoint, which is again a model card."""
