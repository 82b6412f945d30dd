"""Seeds: a trained model is one draw. Until its recipe was run with another seed, a difference may be the draw's."""

from typing import Any

from retbench.reports.board import Block, Row
from retbench.store.key import canonical

ONE_SEED = "‡"


def one_seed(block: Block, row: Row) -> bool:
    """Whether a row's model was trained, and no other row of the block is the same training with another seed."""
    own = _course(row)
    return own is not None and len({_seed(other) for other in block.rows if _course(other) == own}) < 2


def _training(row: Row) -> dict[str, Any] | None:
    found: dict[str, Any] | None = row.card.get("training")
    return found


def _course(row: Row) -> str | None:
    """Everything about a training but its seed."""
    training = _training(row)
    if training is None:
        return None
    recipe = {key: value for key, value in training["recipe"].items() if key != "seed"}
    return canonical([row.label, row.card.get("parent"), recipe, training["data"].get("fingerprint")])


def _seed(row: Row) -> Any:
    training = _training(row)
    return training["recipe"].get("seed") if training else None
