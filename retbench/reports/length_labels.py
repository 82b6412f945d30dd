"""The lengths of a run in the label of its row: how many tokens of a query and of a document were read.

Tasks of one suite may have their own lengths. Runs with the lengths that their tasks ask for belong to one row.
"""

from retbench.cards.task import LengthLimits, SourceSpec, TaskCard
from retbench.encoders.encoder_spec import compute_length_limits
from retbench.records.record import Record


def format_lengths(record: Record) -> str:
    """The lengths that were used; empty for a model without an encoder."""
    encoder = record.settings["encoder"]
    return f"{encoder['query_limit']}/{encoder['document_limit']} tokens" if encoder else ""


def has_usual_lengths(record: Record) -> bool:
    """Whether the lengths are those of the task, as far as the model reads."""
    encoder, lengths = record.settings["encoder"], record.cards["task"].get("lengths")
    if encoder is None or lengths is None:
        return False
    task = TaskCard("-", SourceSpec("folder"), lengths=LengthLimits(lengths["query"], lengths["document"]))
    model = record.cards["model"]
    usual = compute_length_limits(task, model.get("max_length"), model.get("context_length"))
    return usual == (encoder["query_limit"], encoder["document_limit"])


def describe_longer_lengths(record: Record) -> str:
    """The lengths of a run that read more of a text than its task's protocol; empty for the others."""
    encoder, limits = record.settings["encoder"], record.cards["task"].get("lengths")
    if encoder is None or limits is None:
        return ""
    used, allowed = (encoder["query_limit"], encoder["document_limit"]), (limits["query"], limits["document"])
    if not any(0 < limit < length for length, limit in zip(used, allowed, strict=True)):
        return ""
    return f"{used[0]}/{used[1]} tokens, the protocol has {allowed[0]}/{allowed[1]}"
