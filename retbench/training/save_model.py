"""Write a trained model: a folder with weights, tokenizer and a model card, which `run` then finds by name.

card.toml         the model card, written last: a folder without it is an unfinished training
training.json     facts that the card must agree with: checksum, method, end-of-sequence token, parent
model.safetensors or adapter_model.safetensors, config and tokenizer
metrics.jsonl, plan.json, negatives.jsonl
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.model import (
    UNKNOWN_TRAINING_SETS,
    DefaultMethod,
    EosToken,
    ModelCard,
    ModelShape,
    TrainingProvenance,
    WeightsSource,
)
from retbench.cards.stored_recipe import describe_recipe
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import adapters, model_folders
from retbench.errors import UsageError
from retbench.records import machine
from retbench.system import checksums, toml_writer
from retbench.system.durable_files import move_into_place, write_file_atomically
from retbench.system.user_config import encode_path_part, get_cache_folder, list_card_folders
from retbench.training import lora
from retbench.training.hub_datasets import list_collections
from retbench.training.train_forward import TrainableEncoder


@dataclass(frozen=True)
class ParentWeights:
    """The parent's card and the weights that training starts from."""

    card: ModelCard
    folder: Path
    fingerprint: str

    @property
    def reference(self) -> str:
        """How an adapter names its parent: by the card's name, or by the folder of a model without card."""
        weights = self.card.weights
        has_card = self.card.name in catalog.load_model_cards()
        path = weights.path if weights and weights.source == "path" and not has_card else None
        return str(Path(path).resolve()) if path else self.card.name


def save_model(
    folder: Path,
    name: str,
    encoder: TrainableEncoder,
    parent: ParentWeights,
    facts: dict[str, Any],
    state: dict[str, Any] | None = None,
) -> ModelCard:
    """Write the weights first and the card last; `state` are the gathered weights of a sharded model."""
    work = folder / "model.partial"
    shutil.rmtree(work, ignore_errors=True)
    _write_weights(work, encoder, parent, state)
    card = _build_card(work, name, encoder, parent, facts)
    for file in work.iterdir():
        move_into_place(file, folder / file.name)
    work.rmdir()
    write_file_atomically(folder / catalog.CARD_FILE, toml_writer.format_card(card).encode())
    remove_checkpoints(folder)
    return card


def remove_checkpoints(folder: Path) -> None:
    """Remove what a finished training no longer needs; a training that was killed after its card does it later."""
    for leftover in (
        *folder.glob("checkpoint-*"),
        *folder.glob("best[-.]*"),
    ):  # `best.` of an early version
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _write_weights(work: Path, encoder: TrainableEncoder, parent: ParentWeights, state: dict[str, Any] | None) -> None:
    needs_merge = encoder.recipe.lora is not None and encoder.recipe.output == "merged"
    folder = work / "adapter" if needs_merge else work
    lora.save_trained_weights(encoder.model, folder, parent.reference, state)
    encoder.prompt_tokenizer.tokenizer.save_pretrained(folder)
    if needs_merge:
        adapters.merge_adapter(parent.folder, folder, work)
        shutil.rmtree(folder)


def _build_card(
    work: Path, name: str, encoder: TrainableEncoder, parent_weights: ParentWeights, facts: dict[str, Any]
) -> ModelCard:
    parent, recipe = parent_weights.card, encoder.recipe
    has_adapter = (work / adapters.ADAPTER_WEIGHTS).exists()
    weights = work / (adapters.ADAPTER_WEIGHTS if has_adapter else "model.safetensors")
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
        shape=ModelShape(**model_folders.read_shape(parent_weights.folder)),
        method=DefaultMethod(recipe.method.name, recipe.method),
        eos=_get_eos_token(encoder.prompt_tokenizer),
        training=_build_provenance(encoder, parent_weights, facts),
    )
    check_facts = {
        "sha256": card.weights.sha256 if card.weights else None,
        "weights": weights.name,
        "method": model_folders.get_vector_method_fields(card),
        "eos": [card.eos.text, card.eos.id] if card.eos else None,
        "parent_fingerprint": parent_weights.fingerprint,
    }
    content = json.dumps(check_facts, indent=1, ensure_ascii=False)
    (work / model_folders.TRAINING_FILE).write_text(content, encoding="utf-8")
    return card


def _build_provenance(encoder: TrainableEncoder, parent: ParentWeights, facts: dict[str, Any]) -> TrainingProvenance:
    recipe, packages = describe_recipe(encoder.recipe), machine.describe_machine()["packages"]
    return TrainingProvenance(recipe, parent.fingerprint, facts["data"], facts["run"], packages, facts["command"])


def _list_training_sets(parent: ModelCard, dataset: str) -> tuple[str, ...]:
    known_sets = parent.training_sets if parent.training_sets is not None else (UNKNOWN_TRAINING_SETS,)
    return tuple(dict.fromkeys([*known_sets, *list_collections(dataset)]))


def _get_eos_token(prompt_tokenizer: PromptTokenizer) -> EosToken | None:
    token, token_id = prompt_tokenizer.tokenizer.eos_token, prompt_tokenizer.tokenizer.eos_token_id
    return EosToken(str(token), int(token_id)) if token is not None else None


def choose_output_folder(name: str, out: Path | None) -> Path:
    """The folder of a training; by default one in the cache, where models are found by name."""
    return out or get_cache_folder() / "model_cards" / encode_path_part(name)


def check_name_is_free(name: str, folder: Path) -> None:
    """Refuse the name of another model; this folder's own name and the name of a deleted folder are free."""
    if name not in catalog.load_model_cards():
        return
    weights = catalog.load_model_cards().find(name).weights
    path = Path(weights.path) if weights and weights.path else None
    if path is None or (path.exists() and path.resolve() != folder.resolve()):
        raise UsageError(f"there is already a model called {name}", "give another --name")


def register_model(card: ModelCard, folder: Path) -> None:
    """Let `run` find the model by name; a folder outside the card folders gets a card in the cache."""
    card_folders = list_card_folders("model_cards")
    is_known = any(folder.resolve().is_relative_to(card_folder.resolve()) for card_folder in card_folders)
    if not is_known and card.weights:
        card_file = get_cache_folder() / "model_cards" / f"{encode_path_part(card.name)}.toml"
        card_file.parent.mkdir(parents=True, exist_ok=True)
        weights = WeightsSource("path", path=str(folder.resolve()), sha256=card.weights.sha256)
        write_file_atomically(card_file, toml_writer.format_card(replace(card, weights=weights)).encode())
    catalog.load_model_cards.cache_clear()
