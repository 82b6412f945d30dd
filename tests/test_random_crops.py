"""Training without labels: two crops of one text are a pair, and hard negatives are crops that BM25 finds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retbench.cards import catalog
from retbench.cards.mining import MiningSettings
from retbench.cards.model import LexicalSettings, ModelCard
from retbench.cards.recipe import ContrastiveSettings, CropSettings, OptimizerSettings
from retbench.corpora.hub_snapshots import DatasetSnapshot
from retbench.errors import DataError, MissingError, UsageError
from retbench.pipelines.finetuning.train_encoder import finetune_encoder
from retbench.retrievers.bm25 import BM25Index
from retbench.training import lora
from retbench.training.hub_corpora import HUB_CORPORA
from retbench.training.random_crops import CropBatchSource
from retbench.training.training_data import TrainingRequest
from tests import hub_repositories, small_collection, tiny_models
from tests.test_train_loop import RECIPE

CROPS = CropSettings(min_tokens=3)
SECOND_TO_FOURTH = MiningSettings("bm25", rank_from=2, rank_to=4)


@pytest.fixture
def train(model: Path, tmp_path: Path, fresh_catalog: Callable[[], None]) -> Callable[..., ModelCard]:
    settings = {"contrastive": replace(RECIPE.contrastive, hard_negatives=1), "mining": SECOND_TO_FOURTH}
    optimizer = OptimizerSettings(learning_rate=1e-2, max_steps=2)
    crops_recipe = replace(RECIPE, objective="llm2ir", crops=CROPS, optimizer=optimizer, **settings)

    def train_model(dataset: str, recipe: Any = crops_recipe) -> ModelCard:
        return finetune_encoder(TrainingRequest(dataset, str(model), out=tmp_path / "pupil"), recipe)

    return train_model


def test_random_crops_need_no_labels(train: Callable[..., ModelCard], tmp_path: Path) -> None:
    card = train(str(small_collection.write_folder(tmp_path / "pantry")))
    assert card.training
    assert card.training.data["labels"] is False
    assert card.training.data["texts"] == 19  # all texts except the empty one


def test_wikitext_is_read_from_the_hub(train: Callable[..., ModelCard]) -> None:
    """In the layout of its repository: several configurations, and rows that are blank or a heading."""
    source = HUB_CORPORA["wikitext-103"]
    rows = ["", " = A = \n", *(f" {text} \n" for text in tiny_models.SENTENCES[:12]), " \n"]
    tables = {
        "wikitext-2-raw-v1": (source.split, [{"text": "the text of another configuration"}]),
        source.config: (source.split, [{"text": row} for row in rows]),
    }
    hub_repositories.write_fetched_repository(source.repo, source.revision, tables)
    card = train("wikitext-103")
    assert card.training
    assert (card.training.data["set"], card.training.data["labels"]) == ("wikitext-103", False)
    assert card.training.data["texts"] == 12
    assert card.training_sets == ("unknown", "wikitext-103")


def test_without_a_network_the_next_step_is_named_before_weights_are_loaded(
    train: Callable[..., ModelCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "load_model", lambda *_, **__: pytest.fail("the weights were loaded first"))

    def fail(snapshot: DatasetSnapshot, _: Any) -> None:
        raise MissingError(f"{snapshot.repo} could not be fetched", "fetch it elsewhere")

    monkeypatch.setattr(DatasetSnapshot, "fetch", fail)
    with pytest.raises(MissingError) as caught:
        train("wikitext-103")
    assert "Salesforce/wikitext" in caught.value.cause
    assert "documents of another task" in caught.value.next_step


def test_texts_without_queries_cannot_be_labels(train: Callable[..., ModelCard]) -> None:
    with pytest.raises(UsageError, match="texts without queries"):
        train("wikitext-103", RECIPE)


def build_source(mining: MiningSettings, hard_negatives: int) -> CropBatchSource:
    texts = [f"{text} {text}" for text in tiny_models.SENTENCES]
    contrastive = ContrastiveSettings(0.05, hard_negatives)
    recipe = replace(
        catalog.find_recipe("llm2ir"), crops=CropSettings(0.5, 0.9, 2), mining=mining, contrastive=contrastive
    )
    return CropBatchSource.build(texts, tiny_models.build_tokenizer(), recipe)


def test_hard_negatives_follow_the_mining_table() -> None:
    """A crop's negatives are from texts of the ranks that the table names, and never from its own text."""
    source, rows = build_source(SECOND_TO_FOURTH, 2), np.arange(24)
    index = BM25Index(LexicalSettings(), source.texts)
    batch = source.build_batch(rows, 0)
    count = 0
    for query, row in zip(batch.queries, rows.tolist(), strict=True):
        ranked = [int(hit) for hit in index.search([query], len(source)).rows[0] if hit != row][1:4]
        places = [place for place in np.flatnonzero(batch.owner == row) if place >= len(rows)]
        assert len(places) == min(2, len(ranked))
        assert all(any(batch.passages[place] in source.texts[hit] for hit in ranked) for place in places)
        count += len(places)
    assert count > 12  # or the test has tested little


def test_the_best_hit_is_the_negative_of_the_recipe() -> None:
    source, rows = build_source(catalog.find_recipe("llm2ir").mining, 1), np.arange(8)
    index = BM25Index(LexicalSettings(), source.texts)
    batch = source.build_batch(rows, 3)
    for place in range(len(rows), len(batch.passages)):
        row = int(batch.owner[place])
        best = next(int(hit) for hit in index.search([batch.queries[row]], 2).rows[0] if hit != row)
        assert batch.passages[place] in source.texts[best]


def test_a_limit_on_scores_is_kept() -> None:
    source = build_source(replace(SECOND_TO_FOURTH, max_score_ratio=0.0), 2)
    assert len(source.build_batch(np.arange(12), 0).passages) == 12  # no text is that bad, so no hard negative is left


@pytest.mark.parametrize("mining", [MiningSettings(), MiningSettings("model"), MiningSettings("bm25", file="x")])
def test_crops_have_no_hard_negatives_but_bm25s(mining: MiningSettings) -> None:
    with pytest.raises(DataError, match="from BM25"):
        replace(catalog.find_recipe("llm2ir"), mining=mining)


def test_the_recipe_adapts_all_layers_of_phi_too() -> None:
    """Phi-3 has fused projections: by the names of Llama's layers, half of its blocks would not be trained."""
    from transformers import Phi3Config, Phi3Model

    recipe = replace(catalog.find_recipe("llm2ir"), dtype="float32")
    config = Phi3Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)  # fmt: skip
    model = lora.prepare_for_training(Phi3Model(config), recipe)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in lora.get_trainable_weights(model)}
    assert adapted == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    llama_names = replace(recipe, lora=catalog.find_recipe("specialized-llms").lora)
    with pytest.raises(DataError, match="no linear layer named q_proj"):
        lora.prepare_for_training(Phi3Model(config), llama_names)
