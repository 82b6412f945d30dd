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
from retbench.cards.model import (
    UNKNOWN_TRAINING_SETS,
    DefaultMethod,
    EosToken,
    ModelCard,
    ModelShape,
    TrainingProvenance,
    WeightsSource,
)
from retbench.cards.recipe import describe_recipe
from retbench.cards.user_config import cache_folder, encode_path_part, list_card_folders
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import adapters as files
from retbench.engines import model_folders
from retbench.errors import UsageError
from retbench.records import machine
from retbench.store.shard_store import write_file_atomically
from retbench.training import lora
from retbench.training.train_forward import TrainableEncoder


@dataclass(frozen=True)
class ParentWeights:
    """Where a training starts: the parent's card and the weights it was given."""

    card: ModelCard
    folder: Path
    fingerprint: str

    @property
    def reference(self) -> str:
        """How an adapter names its parent: by its card, or by its place where it has none."""
        weights = self.card.weights
        own = (
            weights.path
            if weights and weights.source == "path" and self.card.name not in catalog.load_model_cards()
            else None
        )
        return str(Path(own).resolve()) if own else self.card.name


def save_model(
    folder: Path,
    name: str,
    trainee: TrainableEncoder,
    origin: ParentWeights,
    facts: dict[str, Any],
    state: dict[str, Any] | None = None,
) -> ModelCard:
    """Weights first, the card last; `state` are weights that processes had shared out, put together."""
    work = folder / "model.partial"
    shutil.rmtree(work, ignore_errors=True)
    _write_weights(work, trainee, origin, state)
    card = _build_card(work, name, trainee, origin, facts)
    for file in work.iterdir():
        file.replace(folder / file.name)
    work.rmdir()
    write_file_atomically(folder / catalog.CARD_FILE, toml_writer.format_card(card).encode())
    for rest in (*folder.glob("checkpoint-*"), *folder.glob("best.*")):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    return card


def _write_weights(work: Path, trainee: TrainableEncoder, origin: ParentWeights, state: dict[str, Any] | None) -> None:
    trained = work if trainee.recipe.lora is None or trainee.recipe.output == "adapter" else work / "adapter"
    lora.save_trained_weights(trainee.model, trained, origin.reference, state)
    trainee.prompt_tokenizer.tokenizer.save_pretrained(trained)
    if trained != work:
        files.merge_adapter(origin.folder, trained, work)
        shutil.rmtree(trained)


def _build_card(
    work: Path, name: str, trainee: TrainableEncoder, origin: ParentWeights, facts: dict[str, Any]
) -> ModelCard:
    parent, recipe = origin.card, trainee.recipe
    weights = work / (files.ADAPTER_WEIGHTS if (work / files.ADAPTER_WEIGHTS).exists() else "model.safetensors")
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
        training_sets=_list_training_sets(parent, facts["data"]["set"]),
        weights=WeightsSource("path", path=".", sha256=checksums.cached_sha256(weights)),
        shape=ModelShape(**model_folders.read_shape(origin.folder)),
        method=DefaultMethod(recipe.method.name, recipe.method),
        eos=_get_eos_token(trainee.prompt_tokenizer),
        training=_build_provenance(trainee, origin, facts),
    )
    told = {
        "sha256": card.weights.sha256 if card.weights else None,
        "weights": weights.name,
        "method": model_folders.get_vector_method_fields(card),
        "eos": [card.eos.text, card.eos.id] if card.eos else None,
        "parent_fingerprint": origin.fingerprint,
    }
    (work / model_folders.TRAINING_FILE).write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    return card


def _build_provenance(trainee: TrainableEncoder, origin: ParentWeights, facts: dict[str, Any]) -> TrainingProvenance:
    recipe, packages = describe_recipe(trainee.recipe), machine.describe()["packages"]
    return TrainingProvenance(recipe, origin.fingerprint, facts["data"], facts["run"], packages, facts["command"])


def _list_training_sets(parent: ModelCard, own: str) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys([*(parent.training_sets if parent.training_sets is not None else (UNKNOWN_TRAINING_SETS,)), own])
    )


def _get_eos_token(wording: PromptTokenizer) -> EosToken | None:
    token, number = wording.tokenizer.eos_token, wording.tokenizer.eos_token_id
    return EosToken(str(token), int(number)) if token is not None else None


def choose_output_folder(name: str, out: Path | None) -> Path:
    """The folder of a training; the cache is a folder of cards, so what lies in it has a name."""
    return out or cache_folder() / "model_cards" / encode_path_part(name)


def check_name_is_free(name: str, folder: Path) -> None:
    """Refuse a name that another card has; the same training again may keep its own, and a lost folder's is free."""
    if name not in catalog.load_model_cards():
        return
    weights = catalog.load_model_cards().find(name).weights
    place = Path(weights.path) if weights and weights.path else None
    if place is None or (place.exists() and place.resolve() != folder.resolve()):
        raise UsageError(f"there is already a model called {name}", "give another --name")


def register_model(card: ModelCard, folder: Path) -> None:
    """Make a folder known by name on this machine: outside the folders of cards, by a card in the cache."""
    known = any(folder.resolve().is_relative_to(own.resolve()) for own in list_card_folders("model_cards"))
    if not known and card.weights:
        here = cache_folder() / "model_cards" / f"{encode_path_part(card.name)}.toml"
        here.parent.mkdir(parents=True, exist_ok=True)
        weights = WeightsSource("path", path=str(folder.resolve()), sha256=card.weights.sha256)
        write_file_atomically(here, toml_writer.format_card(replace(card, weights=weights)).encode())
    catalog.load_model_cards.cache_clear()
