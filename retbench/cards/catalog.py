"""The catalog: find every card by name or alias. A duplicate name is an error; an unknown name gets suggestions."""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from retbench.cards import options
from retbench.cards.method import DESCRIPTIVE_FIELDS, Method
from retbench.cards.model import ModelCard, WeightsSource
from retbench.cards.prompt_set import PromptSet
from retbench.cards.published_method import describe_published_card
from retbench.cards.published_modules import read_adapter_parent
from retbench.cards.recipe import Recipe, load_recipe
from retbench.cards.study import Study
from retbench.cards.task import SourceSpec, Suite, TaskCard
from retbench.errors import DataError, MissingError, UsageError, join_names, suggest_names
from retbench.system import toml_parser, user_config

CARD_FILE = "card.toml"  # in a folder written by `finetune`


class NamedCard(Protocol):
    """A card with a name."""

    @property
    def name(self) -> str:
        """The unique name."""
        ...


CardT = TypeVar("CardT", bound=NamedCard)


@dataclass(frozen=True)
class CardRegistry(Generic[CardT]):
    """All cards of one kind, by name and by alias."""

    kind: str
    cards: dict[str, CardT]
    aliases: dict[str, str]

    def find(self, name: str) -> CardT:
        """Find a card by name or alias."""
        card = self.cards.get(self.aliases.get(name.lower(), ""))
        if card is None:
            step = _suggest_path(self.kind, name) or _suggest_other_kind(self.kind, name) or self._suggest_name(name)
            raise UsageError(f"there is no {self.kind} called {name!r}", step)
        return card

    def _suggest_name(self, name: str) -> str:
        kind = {"prompt set": "prompts", "study": "studies"}.get(self.kind, f"{self.kind}s")
        return suggest_names(name.lower(), self.aliases, f"retbench list {kind}")

    def __contains__(self, name: str) -> bool:
        return name.lower() in self.aliases

    def __iter__(self) -> Iterator[CardT]:
        return iter(self.cards.values())


def _suggest_path(kind: str, name: str) -> str | None:
    """Offer the file or folder of that name: without a separator an argument is the name of a card."""
    path = Path(name).expanduser()
    if kind not in ("model", "task", "suite") or not path.exists():
        return None
    typed = name if _is_path(name) else f"./{name}"
    if kind == "suite":
        return f"a folder is a task: --task {typed}"
    return f"write {typed} for the {'folder' if path.is_dir() else 'file'} {name}"


def _suggest_other_kind(kind: str, name: str) -> str | None:
    """Say that a suite was given as a task, or a task as a suite."""
    if kind == "task" and name in load_suites():
        suite = load_suites().find(name)
        return f"{suite.name} is a suite: --suite {suite.name}; its tasks: {join_names(suite.expand_tasks())}"
    if kind == "suite" and name in load_task_cards():
        return f"{load_task_cards().find(name).name} is a task: --task {name}"
    return None


def _build_registry(kind: str, files: list[Path], load_card: Callable[[Path], CardT]) -> CardRegistry[CardT]:
    cards: dict[str, CardT] = {}
    aliases: dict[str, str] = {}
    files_by_name: dict[str, Path] = {}
    for file in files:
        card = load_card(file)
        for name in map(str.lower, (card.name, *getattr(card, "aliases", ()))):
            if name in files_by_name:
                raise DataError(
                    f"{file} and {files_by_name[name]} both define the {kind} {name!r}", "rename one of them"
                )
            files_by_name[name] = file
            aliases[name] = card.name
        cards[card.name] = card
    return CardRegistry(kind, cards, aliases)


def _list_files(folders: list[Path], pattern: str) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.glob(pattern), key=lambda f: (f.parent, f.stem))]


@functools.cache
def load_model_cards() -> CardRegistry[ModelCard]:
    """Load every model card."""
    return _build_registry(
        "model", _list_files(user_config.list_card_folders("model_cards"), "**/*.toml"), _load_model_card
    )


def _load_model_card(file: Path) -> ModelCard:
    """Load a card; a relative path of its weights is relative to the card."""
    card = toml_parser.load_card(ModelCard, file)
    if card.weights is None or card.weights.path is None:
        return card
    path = file.parent / Path(card.weights.path).expanduser()
    return replace(card, weights=replace(card.weights, path=str(path)))


@functools.cache
def load_task_cards() -> CardRegistry[TaskCard]:
    """Load every task card; its folder is its home suite."""
    files = [f for f in _list_files(user_config.list_card_folders("tasks"), "*/*.toml") if f.stem != "suite"]
    return _build_registry("task", files, lambda f: toml_parser.load_card(TaskCard, f, suite=f.parent.name))


@functools.cache
def load_suites() -> CardRegistry[Suite]:
    """Load every suite card (`tasks/<suite>/suite.toml`)."""
    return _build_registry(
        "suite",
        _list_files(user_config.list_card_folders("tasks"), "*/suite.toml"),
        lambda f: toml_parser.load_card(Suite, f),
    )


@functools.cache
def load_methods() -> CardRegistry[Method]:
    """Load every method preset: the shipped ones, then the user's."""
    folders = [user_config.PACKAGE_FOLDER / "cards" / "methods", *user_config.list_card_folders("methods")]
    return _build_registry("method", _list_files(folders, "*.toml"), lambda f: toml_parser.load_card(Method, f))


def find_method(argument: str) -> Method:
    """Find a preset, or build `preset:key=value,...`; a preset with a changed field has the fidelity `ours`."""
    name, option_values = options.split_options(argument)
    preset = load_methods().find(name)
    if not option_values:
        return preset
    changed_method = options.apply_options(preset, option_values, fixed=("name", *DESCRIPTIVE_FIELDS))
    return replace(changed_method, name=options.join_options(preset.name, option_values), fidelity="ours")


@functools.cache
def load_prompt_sets() -> CardRegistry[PromptSet]:
    """Load every prompt set: the shipped ones, then the user's."""
    folders = [user_config.PACKAGE_FOLDER / "cards" / "prompts", *user_config.list_card_folders("prompts")]
    return _build_registry("prompt set", _list_files(folders, "*.toml"), _load_prompt_set)


def _load_prompt_set(file: Path) -> PromptSet:
    return toml_parser.load_card(PromptSet, file)


def find_prompt_set(argument: str) -> PromptSet:
    """Find a prompt set by name, or load the user's TOML file."""
    if not argument.endswith(".toml"):
        if argument not in load_prompt_sets() and Path(argument).expanduser().exists():
            raise UsageError(f"{argument} is no TOML file", "a prompt set ends in .toml (docs/methods.md)")
        return load_prompt_sets().find(argument)
    if not Path(argument).expanduser().is_file():
        raise MissingError(f"there is no prompt set at {argument}", "give a TOML file, or `retbench list prompts`")
    return _load_prompt_set(Path(argument).expanduser())


@functools.cache
def load_recipes() -> CardRegistry[Recipe]:
    """Load every training recipe."""
    return _build_registry(
        "recipe",
        _list_files(user_config.list_card_folders("recipes"), "*.toml"),
        load_recipe,
    )


def find_recipe(argument: str) -> Recipe:
    """Find a recipe by name, or load the user's TOML file."""
    if not argument.endswith(".toml"):
        return load_recipes().find(argument)
    if not Path(argument).expanduser().is_file():
        raise MissingError(f"there is no recipe at {argument}", "give a TOML file, or one of `retbench list recipes`")
    return load_recipe(Path(argument).expanduser())


@functools.cache
def load_studies() -> CardRegistry[Study]:
    """Load every study plan."""
    return _build_registry(
        "study",
        _list_files(user_config.list_card_folders("studies"), "*.toml"),
        lambda f: toml_parser.load_card(Study, f),
    )


def find_study(argument: str) -> Study:
    """Find a study by name, or load the user's TOML file."""
    if not argument.endswith(".toml"):
        if argument not in load_studies() and Path(f"{argument}.toml").expanduser().is_file():
            raise UsageError(f"there is no study called {argument!r}", f"for the file beside you write {argument}.toml")
        return load_studies().find(argument)
    if not Path(argument).expanduser().is_file():
        raise MissingError(f"there is no study plan at {argument}", "give a TOML file, or one of `retbench study list`")
    return toml_parser.load_card(Study, Path(argument).expanduser())


def _is_path(argument: str) -> bool:
    return argument.startswith((".", "~")) or (("/" in argument or "\\" in argument) and Path(argument).exists())


def find_model_card(argument: str) -> ModelCard:
    """Find a model by card name, alias, path (a folder or a GGUF file) or hub id."""
    if _is_path(argument):
        return _find_model_at(Path(argument).expanduser())
    if argument in load_model_cards() or not re.fullmatch(r"[\w.-]+/[\w.-]+", argument):
        return load_model_cards().find(argument)
    return ModelCard(name=argument.lower(), weights=WeightsSource(source="hub", repo=argument))


def suggest_card(card: ModelCard) -> str | None:
    """Name the cards of a repository that was given by its hub id; None if there is none."""
    if card.weights is None or card.weights.source != "hub" or card.name in load_model_cards():
        return None
    repo = str(card.weights.repo).lower()
    names = [one.name for one in load_model_cards() if one.weights and str(one.weights.repo).lower() == repo]
    if not names:
        return None
    known = f"{' or '.join(names)} is the card of this repository, with method, training sets and limits"
    return f"{card.name}: {known}: --model {names[0]}"


def find_served_model_card(argument: str) -> ModelCard:
    """Find the card of a model on a server; a name without a card is the server's own name for it."""
    has_card = _is_path(argument) or "/" in argument or argument in load_model_cards()
    return find_model_card(argument) if has_card else ModelCard(name=argument)


def _find_model_at(path: Path) -> ModelCard:
    if not path.exists():
        raise MissingError(f"there is no model at {path}", "give a Hugging Face folder or a GGUF file")
    if (path / CARD_FILE).is_file():
        return _load_own_card(path / CARD_FILE)
    layout = "folder" if path.is_dir() else "gguf"
    weights = toml_parser.convert_value(
        WeightsSource, {"source": "path", "layout": layout, "path": str(path)}, toml_parser.CardLocation(path, "")
    )
    name = path.resolve().name if path.is_dir() else path.stem  # `stem` would cut the folder name qwen2.5-0.5b at .5b
    card = ModelCard(name=name.lower(), weights=weights)
    if parent := read_adapter_parent(path):  # what it is, the files say that the merge writes
        return replace(card, parent=Path(parent).name if Path(parent).is_absolute() else parent)
    return describe_published_card(card, path)


def _load_own_card(file: Path) -> ModelCard:
    """Load the card in a model folder. It may describe only that folder: who made it must not cause a download."""
    card = _load_model_card(file)
    if card.weights is not None and card.weights.source != "path":
        raise DataError(
            f"{file} says that its weights are elsewhere (source {card.weights.source!r})",
            'write source = "path" and path = "." into [weights], or put the card into model_cards/ of your own cards',
        )
    return card


def find_task_card(argument: str) -> TaskCard:
    """Find a task by card name or alias, or describe the user's BEIR folder."""
    if not _is_path(argument):
        return load_task_cards().find(argument)
    path = Path(argument).expanduser()
    if not path.is_dir():
        raise MissingError(
            f"there is no collection at {path}", "give a folder with corpus.jsonl, queries.jsonl, qrels/"
        )
    return TaskCard(name=path.resolve().name.lower(), source=SourceSpec(kind="folder", path=str(path)))
