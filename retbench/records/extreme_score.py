"""A score of exactly 0 or 100 over many queries: real retrieval hardly ever has it, so something is probably wrong."""

MIN_QUERIES_TO_DOUBT = 10  # over fewer queries it is no surprise


def explain_extreme_score(score: float | None, queries: int) -> str | None:
    """Say what to check; None for every other score."""
    if score not in (0.0, 1.0) or queries < MIN_QUERIES_TO_DOUBT:
        return None
    if score == 0.0:
        return (
            f"exactly 0 on all {queries:,} queries. Check the ids in the judgments, and the texts that the model read "
            "(--dry-run)"
        )
    return (
        f"exactly 100 on all {queries:,} queries. Check that a query is not its own relevant document and that the "
        "documents do not hold the queries' texts"
    )
