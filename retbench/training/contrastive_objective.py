"""The gradient of a contrastive training step: its batches, their losses, and the cost that a measurement predicts."""

from dataclasses import dataclass

from retbench.training.contrastive_batches import BatchSampler, BatchSource
from retbench.training.gradient_caching import backward_batch
from retbench.training.train_forward import TrainableEncoder


@dataclass(frozen=True)
class ContrastiveObjective:
    """Trains an encoder on the batches of a source. The train loop calls `backward` once a step."""

    encoder: TrainableEncoder
    source: BatchSource

    @property
    def sampler(self) -> BatchSampler:
        """Which queries each step takes."""
        recipe = self.encoder.recipe
        return BatchSampler(len(self.source), recipe.batch, recipe.seed)

    def backward(self, step: int) -> tuple[float, int]:
        """Add the gradient of one step to the weights; return its loss and the tokens that this process ran."""
        sampler = self.sampler
        epoch, batches = sampler.sample_rows(step)
        loss, tokens = 0.0, 0
        for number, rows in enumerate(batches):
            weight = len(rows) / sampler.queries_per_step
            seed = (self.encoder.recipe.seed, step, number)
            batch_loss, count = backward_batch(self.encoder, self.source.build_batch(rows, epoch), weight, seed)
            loss, tokens = loss + weight * batch_loss, tokens + count
        return loss, tokens

    def get_first_query(self, step: int) -> str:
        """The beginning of a step's first query, for error messages."""
        epoch, batches = self.sampler.sample_rows(step)
        return self.source.build_batch(batches[0], epoch).queries[0][:80]
