"""Chat templates: programs of a model folder, which run in Jinja's sandbox and for a limited time."""

from collections.abc import Sequence
from typing import Any

from retbench.engines.time_limit import MAX_SECONDS, limit_seconds
from retbench.errors import DataError


def render_chat(tokenizer: Any, turns: Sequence[dict[str, str]], **options: Any) -> str:
    """The text of a chat in the model's own template."""
    from jinja2.exceptions import TemplateError  # here because most methods render no chat

    try:
        with limit_seconds(MAX_SECONDS, "the chat template of the model"):
            return str(tokenizer.apply_chat_template(list(turns), tokenize=False, **options))
    except (TemplateError, OverflowError) as problem:
        raise DataError(
            f"the chat template of the model fails: {str(problem)[:200]}", "use a method without a chat template"
        ) from problem
