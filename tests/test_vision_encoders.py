"""Models that read images: their vectors equal those of plain transformers and of sentence-transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from retbench.cards import catalog
from retbench.cards.method import Method, Role
from retbench.cards.model import ModelCard, WeightsSource
from retbench.corpora.images import decode_image
from retbench.corpora.open_collection import open_collection
from retbench.corpora.texts import Texts, read_inputs
from retbench.encoders.batch_plan import BatchPlan
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.errors import DataError, InapplicableError, UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.overrides import Overrides
from tests import image_collection, small_collection, tiny_vision_models
from tests.tiny_vision_models import DECODERS, TOWERS

FAMILIES = (*TOWERS, *DECODERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    return {family: tiny_vision_models.build_vision_model(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def collection_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_collection.write_folder(tmp_path_factory.mktemp("images") / "discs")


def resolve(folder: Path, **fields: Any) -> ResolvedModel:
    card = ModelCard(folder.name, dtype="float32", weights=WeightsSource("path", path=str(folder)), **fields)
    return ResolvedModel.resolve(card, None, lambda _: None)


def build_spec(model: ResolvedModel, method: str | Method, collection_folder: Path, **changed: Any) -> EncoderSpec:
    task = small_collection.build_card(collection_folder)
    resolved = catalog.find_method(method) if isinstance(method, str) else method
    return model.build_encoder_spec(resolved, task, Overrides.parse(changed), with_images=True)


def read_rows(collection_folder: Path) -> Texts:
    return open_collection(small_collection.build_card(collection_folder), with_images=True).corpus


def list_images(texts: Texts) -> list[Image.Image | None]:
    assert texts.images
    data = [texts.images.read(row) for row in range(len(texts))]
    return [None if item is None else decode_image(item) for item in data]


def encode(model: ResolvedModel, spec: EncoderSpec, texts: Texts, role: Role = "document") -> np.ndarray:
    """Encode in batches as a run does: sorted by tokens, two rows or more together."""
    encoder = model.load_encoder(spec)
    tokens = encoder.tokenize(read_inputs(texts, ("title", "text")), role)
    vectors = np.empty((len(texts), encoder.dimension), dtype=np.float32)
    for batch in iterate_batches(tokens):
        vectors[batch] = encoder.encode(tokens.select(batch))
    return vectors


def iterate_batches(tokens: TokenizedTexts) -> Iterator[np.ndarray]:
    yield from BatchPlan.build(tokens.lengths, int(tokens.lengths.max()) * 3, len(tokens)).iterate_batches(0)


def normalize(vectors: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vectors.float(), dim=1).numpy()


def compute_plain_states(folder: Path, prompts: list[str], images: list[Image.Image | None]) -> np.ndarray:
    """Compute the last states by transformers' own processor and model, one row after the other."""
    import transformers

    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    name = names[folder.name]
    model_class = getattr(transformers, f"{name}Model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    vectors, model = [], model_class.from_pretrained(folder).eval()
    image_token = model.config.image_token_id
    for prompt, image in zip(prompts, images, strict=True):
        inputs: dict[str, Any] = {}
        tokens = 0
        if image is not None:
            inputs = dict(image_processor(images=[image], return_tensors="pt"))
            tokens = int(inputs["image_grid_thw"].prod()) // image_processor.merge_size**2
        repeated = prompt.replace("<|image_pad|>", "<|image_pad|>" * tokens)
        encoded = tokenizer(repeated, return_tensors="pt")
        types = (encoded["input_ids"] == image_token).int()
        with torch.no_grad():
            output = model(**encoded, **inputs, mm_token_type_ids=types)
        vectors.append(output.last_hidden_state[0, -1])
    return normalize(torch.stack(vectors))


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_equals_plain_transformers_image_by_image(
    family: str, folders: dict[str, Path], collection_folder: Path
) -> None:
    model, texts = resolve(folders[family]), read_rows(collection_folder)
    vectors = encode(model, build_spec(model, "last", collection_folder), texts)
    prompts = ["<|vision_start|><|image_pad|><|vision_end|>"] * 3 + ["Colours A text about grey discs."]
    plain = compute_plain_states(folders[family], prompts, list_images(texts))
    np.testing.assert_allclose(vectors, plain, atol=1e-5)
    assert np.abs(plain[0] - plain[1]).max() > 1e-2  # else the test could not fail


@pytest.mark.parametrize("family", TOWERS)
def test_towers_equal_plain_transformers(family: str, folders: dict[str, Path], collection_folder: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model, texts = resolve(folders[family]), read_rows(collection_folder)
    vectors = encode(model, build_spec(model, "as-published", collection_folder), texts)
    plain, tokenizer = AutoModel.from_pretrained(folders[family]).eval(), AutoTokenizer.from_pretrained(folders[family])
    processor = AutoImageProcessor.from_pretrained(folders[family], backend="pil")
    length = {} if family == "clip" else {"padding": "max_length", "max_length": 64}
    with torch.no_grad():
        expected = [
            plain.get_text_features(**tokenizer("Colours A text about grey discs.", return_tensors="pt", **length))
            if image is None
            else plain.get_image_features(**processor(images=image, return_tensors="pt"))
            for image in list_images(texts)
        ]
    np.testing.assert_allclose(vectors, normalize(torch.cat([e.pooler_output for e in expected])), atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_towers_equal_sentence_transformers(family: str, folders: dict[str, Path], collection_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model, texts = resolve(folders[family]), read_rows(collection_folder)
    vectors = encode(model, build_spec(model, "as-published", collection_folder), texts)
    # the model's authors always pad a text of SigLIP to its full length; the library does so if it is told to
    options = {} if family == "clip" else {"processing_kwargs": {"text": {"padding": "max_length", "max_length": 64}}}
    library = SentenceTransformer(str(folders[family]), device="cpu")
    inputs = [image or "Colours A text about grey discs." for image in list_images(texts)]
    expected = [library.encode([one], normalize_embeddings=True, **options)[0] for one in inputs]
    np.testing.assert_allclose(vectors, np.stack(expected), atol=1e-5)


def test_tokens_are_those_of_the_image_and_of_the_text(folders: dict[str, Path], collection_folder: Path) -> None:
    model = resolve(folders["qwen2_5_vl"])
    spec = build_spec(model, "last", collection_folder)
    tokenizer = model.build_prompt_tokenizer(spec)
    texts = read_rows(collection_folder)
    tokens = tokenizer.tokenize(read_inputs(texts, ("title", "text")), "document", 100)
    # 60 x 40, 90 x 30 and 28 x 84 pixels in squares of 28: 2 x 1, 3 x 1 and 1 x 3, each between two marks
    assert tokens.lengths.tolist()[:3] == [4, 5, 5]
    assert tokens.truncated == 0


def test_more_pixels_are_more_tokens_and_another_key(folders: dict[str, Path], collection_folder: Path) -> None:
    model = resolve(folders["qwen2_5_vl"])
    texts = read_rows(collection_folder)
    lengths, keys = [], []
    for pixels in (28 * 28, 28 * 28 * 6):
        spec = build_spec(model, "last", collection_folder, max_pixels=pixels)
        tokens = model.build_prompt_tokenizer(spec).tokenize(read_inputs(texts, ("text",)), "document", 100)
        lengths.append(int(tokens.lengths[1]))
        keys.append(spec.describe_vectors("document")["max_pixels"])
    assert lengths[0] < lengths[1]
    assert keys == [28 * 28, 28 * 28 * 6]


def test_without_images_the_specification_is_that_of_the_text_part(
    folders: dict[str, Path], collection_folder: Path
) -> None:
    model = resolve(folders["qwen2_5_vl"])
    task = small_collection.build_card(collection_folder)
    described = model.build_encoder_spec(catalog.find_method("last"), task, Overrides()).describe()
    assert not {"image_processor", "min_pixels", "max_pixels"} & set(described)


def test_the_one_word_prompt_has_the_image_in_its_place(folders: dict[str, Path], collection_folder: Path) -> None:
    model = resolve(folders["qwen2_5_vl"])
    for method, words in (
        ("promptreps", 'Passage: "<|vision_start|><|image_pad|> x 2 <|vision_end|>". Use one word to represent the'),
        ("promptreps-image", "Image: <|vision_start|><|image_pad|> x 2 <|vision_end|>\nUse one word to represent the"),
    ):
        spec = build_spec(model, method, collection_folder)
        tokenizer: Any = model.build_prompt_tokenizer(spec)
        tokens = tokenizer.tokenize(read_inputs(read_rows(collection_folder), ("text",)), "document", 100)
        assert words in tokenizer.show_tokens(tokens[0].tolist())
        assert tokenizer.show_tokens(tokens[0].tolist()).endswith('The word is: "')
        assert 'Passage: "A text about grey discs."' in tokenizer.show_tokens(tokens[3].tolist())


def test_the_name_of_the_image_token_in_a_text_is_no_image(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = image_collection.write_folder(tmp_path / "discs")
    rows = [
        {"_id": "red", "image": "images/red.png", "text": "see <|image_pad|>"},
        {"_id": "t", "text": "<|image_pad|>"},
    ]
    image_collection.write_rows(folder / "corpus.jsonl", rows)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tred\t1\n")
    model, texts = resolve(folders["qwen2_vl"]), read_rows(folder)
    assert np.isfinite(encode(model, build_spec(model, "last", folder), texts)).all()


def test_an_image_is_never_cut(folders: dict[str, Path], collection_folder: Path) -> None:
    model, texts = resolve(folders["qwen2_vl"]), read_rows(collection_folder)
    tokenizer = model.build_prompt_tokenizer(build_spec(model, "last", collection_folder))
    with pytest.raises(UsageError, match="cuts its image out of the prompt"):
        tokenizer.tokenize(read_inputs(texts, ("text",)), "document", 1)


def test_gme_numbers_the_tokens_of_an_image_one_after_the_other(
    folders: dict[str, Path], collection_folder: Path
) -> None:
    model, texts = resolve(folders["qwen2_vl"]), read_rows(collection_folder)
    grid, sequential = (
        encode(
            model, build_spec(model, Method("m", "t", "ours", "s", "last", image_positions=p), collection_folder), texts
        )
        for p in ("grid", "sequential")
    )
    np.testing.assert_allclose(grid[3], sequential[3], atol=1e-6)  # a text
    assert np.abs(grid[0] - sequential[0]).max() > 1e-5


REFUSED = {
    "promptreps-hybrid": "weight the words of texts",
    "echo": "reads its input twice",
    "as-published": "the model's own modules",
}


@pytest.mark.parametrize("method", REFUSED)
def test_methods_that_cannot_read_an_image_are_skipped(
    method: str, folders: dict[str, Path], collection_folder: Path
) -> None:
    model = resolve(folders["qwen2_5_vl"])
    with pytest.raises(InapplicableError, match=REFUSED[method]):
        build_spec(model, method, collection_folder)


def test_towers_have_only_their_own_vectors(folders: dict[str, Path], collection_folder: Path) -> None:
    model = resolve(folders["clip"])
    assert [method.name for method in model.resolve_methods([])] == ["as-published"]
    assert (model.card.max_length, model.card.dtype) == (77, "float32")
    with pytest.raises(InapplicableError, match="this model has vectors of its own"):
        build_spec(model, "mean", collection_folder)
    spec = build_spec(model, "as-published", collection_folder, max_pixels=100)
    with pytest.raises(InapplicableError, match="resizes every image"):
        model.build_prompt_tokenizer(spec)


def test_towers_refuse_a_row_with_both(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = image_collection.write_folder(tmp_path / "discs")
    text = (folder / "corpus.jsonl").read_text().replace('"_id": "red"', '"_id": "red", "text": "a disc"')
    (folder / "corpus.jsonl").write_text(text)
    model = resolve(folders["clip"])
    with pytest.raises(InapplicableError, match="has an image and a text"):
        encode(model, build_spec(model, "as-published", folder), read_rows(folder))


@pytest.mark.parametrize("family", ["clip", "qwen2_5_vl"])
def test_a_missing_weight_of_the_tower_is_refused(
    family: str, folders: dict[str, Path], collection_folder: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    copy = tmp_path / family
    shutil.copytree(folders[family], copy)
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "vis" in name and name.endswith("weight"))
    save_file(
        {key: value for key, value in weights.items() if key != name}, copy / "model.safetensors", {"format": "pt"}
    )
    model = resolve(copy)
    method = "as-published" if family == "clip" else "last"
    with pytest.raises(DataError, match="has no"):
        model.load_encoder(build_spec(model, method, collection_folder))
