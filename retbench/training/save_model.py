"""What a training leaves: a folder with weights, tokenizer and a model card, known by name the same minute.

card.toml         the model card, written last: a folder without it is an unfinished training
training.json     what the card must agree with: checksum, method, end-of-sequence token, parent
model.safetensors or adapter_model.safetensors, config and tokenizer
metrics.jsonl, plan.json, negatives.jsonl
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retbench.cards import catalog, checksums, toml_writer
from retbench.cards.model import UNKNOWN, DefaultMethod, Eos, ModelCard, Shape, Training, Weights
from retbench.cards.recipe import on_card
from retbench.cards.user_config import cache_folder, card_folders, path_part
from retbench.encoders.prompt_tokenizer import Wording
from retbench.engines import adapters as files
from retbench.engines import model_folders
from retbench.errors import UsageError
from retbench.records import machine
from retbench.store.shard_store import write_whole
from retbench.training import lora
from retbench.training.train_forward import Trainee


@dataclass(frozen=True)
class Origin:
    """Where a training starts: the parent's card and the weights it was given."""

    card: ModelCard
    folder: Path
    fingerprint: str

    @property
    def reference(self) -> str:
        """How an adapter names its parent: by its card, or by its place where it has none."""
        weights = self.card.weights
        own = weights.path if weights and weights.source == "path" and self.card.name not in catalog.models() else None
        return str(Path(own).resolve()) if own else self.card.name


def write(
    folder: Path,
    name: str,
    trainee: Trainee,
    origin: Origin,
    facts: dict[str, Any],
    state: dict[str, Any] | None = None,
) -> ModelCard:
    """Weights first, the card last; `state` are weights that processes had shared out, put together."""
    work = folder / "model.partial"
    shutil.rmtree(work, ignore_errors=True)
    _weights(work, trainee, origin, state)
    card = _card(work, name, trainee, origin, facts)
    for file in work.iterdir():
        file.replace(folder / file.name)
    work.rmdir()
    write_whole(folder / catalog.CARD, toml_writer.toml(card).encode())
    for rest in (*folder.glob("checkpoint-*"), *folder.glob("best.*")):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    return card


def _weights(work: Path, trainee: Trainee, origin: Origin, state: dict[str, Any] | None) -> None:
    trained = work if trainee.recipe.lora is None or trainee.recipe.output == "adapter" else work / "adapter"
    lora.save(trainee.model, trained, origin.reference, state)
    trainee.wording.tokenizer.save_pretrained(trained)
    if trained != work:
        files.merge(origin.folder, trained, work)
        shutil.rmtree(trained)


def _card(work: Path, name: str, trainee: Trainee, origin: Origin, facts: dict[str, Any]) -> ModelCard:
    parent, recipe = origin.card, trainee.recipe
    weights = work / (files.TENSORS if (work / files.TENSORS).exists() else "model.safetensors")
    card = ModelCard(
        name=name,
        description=f"{parent.name}, trained on {facts['data']['set']} by recipe {recipe.name}",
        family=parent.family,
        specialisation=parent.specialisation,
        parameters=parent.parameters,
        context_length=parent.context_length,
        max_length=parent.max_length,
        dtype=parent.dtype,
        license=parent.license,
        parent=parent.name,
        training_sets=_sets(parent, facts["data"]["set"]),
        weights=Weights("path", path=".", sha256=checksums.sha256(weights)),
        shape=Shape(**model_folders.shape(origin.folder)),
        method=DefaultMethod(recipe.method.name, recipe.method),
        eos=_eos(trainee.wording),
        training=_training(trainee, origin, facts),
    )
    told = {
        "sha256": card.weights.sha256 if card.weights else None,
        "weights": weights.name,
        "method": model_folders.method_bytes(card),
        "eos": [card.eos.text, card.eos.id] if card.eos else None,
        "parent_fingerprint": origin.fingerprint,
    }
    (work / model_folders.TRAINED).write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    return card


def _training(trainee: Trainee, origin: Origin, facts: dict[str, Any]) -> Training:
    recipe, packages = on_card(trainee.recipe), machine.describe()["packages"]
    return Training(recipe, origin.fingerprint, facts["data"], facts["run"], packages, facts["command"])


def _sets(parent: ModelCard, own: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*(parent.training_sets if parent.training_sets is not None else (UNKNOWN,)), own]))


def _eos(wording: Wording) -> Eos | None:
    token, number = wording.tokenizer.eos_token, wording.tokenizer.eos_token_id
    return Eos(str(token), int(number)) if token is not None else None


def place(name: str, out: Path | None) -> Path:
    """The folder of a training; the cache is a folder of cards, so what lies in it has a name."""
    return out or cache_folder() / "model_cards" / path_part(name)


def need_name(name: str, folder: Path) -> None:
    """Refuse a name that another card has; the same training again may keep its own, and a lost folder's is free."""
    if name not in catalog.models():
        return
    weights = catalog.models().find(name).weights
    place = Path(weights.path) if weights and weights.path else None
    if place is None or (place.exists() and place.resolve() != folder.resolve()):
        raise UsageError(f"there is already a model called {name}", "give another --name")


def register(card: ModelCard, folder: Path) -> None:
    """Make a folder known by name on this machine: outside the folders of cards, by a card in the cache."""
    known = any(folder.resolve().is_relative_to(own.resolve()) for own in card_folders("model_cards"))
    if not known and card.weights:
        here = cache_folder() / "model_cards" / f"{path_part(card.name)}.toml"
        here.parent.mkdir(parents=True, exist_ok=True)
        weights = Weights("path", path=str(folder.resolve()), sha256=card.weights.sha256)
        write_whole(here, toml_writer.toml(replace(card, weights=weights)).encode())
    catalog.models.cache_clear()
