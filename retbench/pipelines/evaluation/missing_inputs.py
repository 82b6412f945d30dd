"""Names all that a run needs and this machine lacks in one error: weights and collections, with one fetch line."""

from collections.abc import Sequence

from retbench.cards import catalog
from retbench.cards.task import TaskCard
from retbench.corpora.cache_status import get_cache_status
from retbench.errors import MissingError, RetbenchError

MAX_NAMES = 3


def add_missing_collections(error: RetbenchError, model: str, tasks: Sequence[TaskCard]) -> RetbenchError:
    """Add the collections that are missing too to the error of missing weights, so that one fetch gets all."""
    fetch = f"`retbench fetch {model}`"
    if not isinstance(error, MissingError) or fetch not in error.next_step:
        return error
    missing = [card.name for card in tasks if get_cache_status(card).state == "missing"]
    if not missing:
        return error
    shown = ", ".join(missing[:MAX_NAMES]) + (f" and {len(missing) - MAX_NAMES} more" if missing[MAX_NAMES:] else "")
    names = " ".join(_find_suite(missing, tasks) or missing)
    return MissingError(
        f"{error.cause}, and neither are the collections of {len(missing)} of {len(tasks)} tasks ({shown})",
        error.next_step.replace(fetch, f"`retbench fetch {model} {names}`"),
    )


def _find_suite(missing: Sequence[str], tasks: Sequence[TaskCard]) -> list[str]:
    """Return the shortest suite that has all missing tasks and no task that was not asked for; empty without one."""
    wanted = {card.name for card in tasks}
    fitting = [suite for suite in catalog.load_suites() if set(missing) <= set(suite.expand_tasks()) <= wanted]
    return [min(fitting, key=lambda suite: len(suite.expand_tasks())).name] if fitting else []
