"""What the images of a collection add to the price of a study, from the cards alone."""

from pathlib import Path
from typing import Any

import pytest

from retbench.cards import catalog
from retbench.cards.study import Stage, Study
from retbench.pipelines.estimate_cost import DeviceSpec
from retbench.pipelines.studies.cost import CostEstimator
from retbench.pipelines.studies.image_cost import count_image_tokens
from retbench.pipelines.studies.overview import build_overview


def count_tokens(tmp_path: Path, model: str, **changes: Any) -> float:
    stage = Stage("a", (model,), tasks=("coco-t2i",), set=changes)
    (row,) = build_overview(Study("s", "s", (stage,)), tmp_path, CostEstimator(DeviceSpec(peak=1e12), 20.0)).stages
    return row.work.tokens - catalog.find_task_card("coco-t2i").queries * 16  # type: ignore[operator]  # the card has it


def test_the_price_of_a_study_counts_the_tokens_of_images(tmp_path: Path) -> None:
    photographs = catalog.find_task_card("coco-t2i").documents or 0
    assert count_tokens(tmp_path, "siglip2-base-patch16-224") == photographs * (20 + 14 * 14)
    assert count_tokens(tmp_path, "siglip2-base-patch16-224", images="ignore") == photographs * 20
    assert count_tokens(tmp_path, "e5-base-v2") == photographs * 20
    read, limited = (
        count_tokens(tmp_path, "gme-qwen2-vl-2b-instruct", **changes) for changes in ({}, {"max_pixels": 78_400})
    )
    assert read == pytest.approx(photographs * (20 + 300_000 / 784))
    assert limited == photographs * (20 + 100)


def test_only_some_documents_of_a_mixed_collection_have_an_image() -> None:
    card, task = catalog.find_model_card("gme-qwen2-vl-2b-instruct"), catalog.find_task_card("stdlib-unified")
    pages = count_image_tokens(card, catalog.find_task_card("stdlib-pages"), {})
    assert count_image_tokens(card, task, {}) == pytest.approx(0.34 * pages)
    assert pages == pytest.approx(640 * 828 / 784)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_an_image_tower_reads_a_token_for_each_patch(family: str) -> None:
    """The name has the patch and the resolution; CLIP, of 224 pixels, has a token for the whole image too."""
    for card in catalog.load_model_cards():
        if card.family == family:
            patch, _, size = card.name.partition("-patch")[2].partition("-")
            assert card.image_tokens == (int(size or 224) // int(patch)) ** 2 + (family == "clip"), card.name
