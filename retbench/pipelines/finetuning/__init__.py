"""Fine-tuning: `retbench finetune`, from a dataset to a checkpoint or an adaptor."""
