"""The recipe of the shortest training that writes a checkpoint after every step, for tests of faults and of flips."""

RECIPE = """
name = "short"
title = "t"
fidelity = "ours"
source = "s"
objective = "contrastive"
dtype = "float32"
save_steps = 1
{fields}
[method]
name = "m"
title = "t"
fidelity = "ours"
source = "s"
pooling = "mean"
[lengths]
query = 16
document = 24
[contrastive]
temperature = 0.1
hard_negatives = {hard_negatives}
[batch]
contrastive_batch_size = 4
train_batch_size = 4
max_tokens = 60
[optimizer]
learning_rate = 1e-2
num_train_epochs = 3
{tables}
"""


def format_short_recipe(fields: str = "", hard_negatives: int = 0, tables: str = "") -> str:
    """The recipe with more fields, and with more tables at its end."""
    return RECIPE.format(fields=fields, hard_negatives=hard_negatives, tables=tables)
