"""Shell completion of names: models, tasks, suites, metrics and so on, from their cards and without torch.

A word that looks like a path gets no names, so the shell completes it as a file.
"""

from collections.abc import Callable, Iterable

from retbench.errors import RetbenchError

Complete = Callable[[str], list[str]]


def complete_models(incomplete: str) -> list[str]:
    """Names and aliases of models."""
    from retbench.cards import catalog

    return _select(incomplete, lambda: [n for card in catalog.load_model_cards() for n in (card.name, *card.aliases)])


def complete_tasks(incomplete: str) -> list[str]:
    """Names of tasks."""
    from retbench.cards import catalog

    return _select(incomplete, lambda: [card.name for card in catalog.load_task_cards()])


def complete_suites(incomplete: str) -> list[str]:
    """Names of suites."""
    from retbench.cards import catalog

    return _select(incomplete, lambda: [card.name for card in catalog.load_suites()])


def complete_metrics(incomplete: str) -> list[str]:
    """Names of metrics."""
    from retbench.cards.task import METRIC_NAMES

    return _select(incomplete, lambda: METRIC_NAMES)


def complete_methods(incomplete: str) -> list[str]:
    """Names of methods."""
    from retbench.cards import catalog

    return _select(incomplete, lambda: [method.name for method in catalog.load_methods()])


def complete_prompts(incomplete: str) -> list[str]:
    """Names of prompt sets."""
    from retbench.cards import catalog

    return _select(incomplete, lambda: [prompts.name for prompts in catalog.load_prompt_sets()])


def complete_recipes(incomplete: str) -> list[str]:
    """Names of recipes."""
    from retbench.cards import catalog

    return _select(incomplete, lambda: [recipe.name for recipe in catalog.load_recipes()])


def complete_studies(incomplete: str) -> list[str]:
    """Names of studies."""
    from retbench.cards import catalog

    return _select(incomplete, lambda: [study.name for study in catalog.load_studies()])


def complete_any(*kinds: Complete) -> Complete:
    """Names of several kinds."""
    return lambda incomplete: sorted({name for complete in kinds for name in complete(incomplete)})


def complete_cards(kind: str, incomplete: str) -> list[str]:
    """Names of one kind of card, as `show` takes them."""
    by_kind = {
        "model": complete_models, "task": complete_tasks, "suite": complete_suites, "method": complete_methods,
        "recipe": complete_recipes, "prompts": complete_prompts,
    }  # fmt: skip
    return by_kind[kind](incomplete) if kind in by_kind else []


def _select(incomplete: str, list_names: Callable[[], Iterable[str]]) -> list[str]:
    if incomplete.startswith((".", "/", "~")):
        return []
    try:
        return sorted({name for name in list_names() if name.startswith(incomplete.lower())})
    except RetbenchError:  # a wrong card is an error of the command, not of the key that completes a word
        return []
