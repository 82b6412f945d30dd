"""What `--set dtype=int8` costs a model in score, where it was measured: facts of its card, shown before a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Int8Score:
    """The score of one model on a sample of one task in float32 and in int8."""

    task: str
    metric: str
    float32: float
    int8: float
    queries: int
    source: str


def describe_int8_scores(model: str, scores: tuple[Int8Score, ...]) -> str:
    """Warn of int8 with what was measured for the model, or say that nothing was."""
    measured = ", ".join(
        f"{one.task} {100 * one.float32:.2f} to {100 * one.int8:.2f} ({one.queries} queries)" for one in scores
    )
    loss = f"measured for {model}: {measured}" if measured else f"by how much was not measured for {model}"
    return f"int8 changes scores; {loss}. Compare with float32 on your own task (docs/engine.md)"
