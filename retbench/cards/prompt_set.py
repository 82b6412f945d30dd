"""Prompt sets: other prompts for one model, to measure how much a score depends on the wording.

A set is a TOML file in `prompts/`. `retbench run --prompts` runs every cell with the method's own prompt and with each
prompt of the set; the rows are told apart by the name of the method, `e5:prompt=none`.
"""

import re
from dataclasses import dataclass, replace

from retbench.cards.method import Method
from retbench.cards.task import TaskCard
from retbench.errors import DataError, InapplicableError

NAME_PATTERN = r"[a-z0-9][a-z0-9.-]*"
LABEL_PATTERN = re.compile(rf"[:,]prompt=({NAME_PATTERN})")


@dataclass(frozen=True)
class OtherPrompt:
    """A prompt in place of a method's own.

    `query` and `document` are prompt templates; `query = "{text}"` is a query without a prompt. `instruction` replaces
    the sentence that stands for `{instruction}` in the templates, and `instructions` the sentence of single tasks.
    """

    name: str
    query: str | None = None
    document: str | None = None
    instruction: str | None = None
    instructions: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise DataError(f"the prompt name {self.name!r} is not a short name", "use a-z, 0-9, '-' and '.'")
        templates = [template for template in (self.query, self.document) if template is not None]
        if wrong := next((template for template in templates if "{text}" not in template), None):
            raise DataError(f"prompt {self.name}: the template {wrong!r} has no {{text}}", "write {text} into it")
        if not templates and self.instruction is None and not self.instructions:
            raise DataError(f"prompt {self.name} changes nothing", "give it a query, a document or an instruction")

    def name_method(self, method: Method) -> str:
        """Return the name of the method with this prompt; that of a method that has it already."""
        if split_prompt_name(method.name)[1]:
            return method.name
        return f"{method.name}{',' if ':' in method.name else ':'}prompt={self.name}"

    def apply(self, method: Method, task: TaskCard) -> tuple[Method, TaskCard]:
        """Return the method and the task with this prompt; a prompt that changes no text is refused."""
        own = method.fit_to_task(task)
        changed = replace(
            own,
            name=self.name_method(method),
            fidelity="ours",
            query=self.query or own.query,
            document=self.document or own.document,
        )
        instruction = (self.instructions or {}).get(task.name, self.instruction)
        changed_task = replace(
            task, query_templates=None, document_templates=None, instruction=instruction or task.instruction
        )
        if _list_texts(own, task) == _list_texts(changed, changed_task):
            raise InapplicableError(
                f"prompt {self.name} changes no text of method {method.name} on {task.name}",
                "an instruction needs a method with {instruction} in its template, or write `query` into the prompt",
            )
        return changed, changed_task


def _list_texts(method: Method, task: TaskCard) -> tuple[str, str, str]:
    return method.query, method.document, method.choose_instruction(task)


@dataclass(frozen=True)
class PromptSet:
    """Prompts that are tried beside a method's own."""

    name: str
    prompts: tuple[OtherPrompt, ...]
    title: str | None = None

    def __post_init__(self) -> None:
        names = [prompt.name for prompt in self.prompts]
        if not names:
            raise DataError(f"the prompt set {self.name} has no prompt", "write one or more [[prompts]]")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"the prompt set {self.name} has {twice} twice", "give each prompt a name of its own")


def split_prompt_name(label: str) -> tuple[str, str | None]:
    """Split a method's name, or a row's label, into the part without the prompt and the name of the prompt."""
    found = LABEL_PATTERN.search(label)
    return (label[: found.start()] + label[found.end() :], found[1]) if found else (label, None)
