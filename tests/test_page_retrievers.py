"""ColQwen and ColPali: a vector per token of a page image and of a question, equal to those of transformers' class."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import retbench
from retbench.corpora.texts import read_inputs
from retbench.encoders.text_encoder import RaggedVectors
from retbench.errors import DataError
from retbench.pipelines.models.overrides import Overrides
from retbench.pipelines.runs.compare import compare_runs
from tests import image_collection, small_collection, tiny_vision_models
from tests.test_vision_encoders import build_spec, iterate_batches, list_images, read_rows, resolve

QUESTION = "a red disc"
ARCHITECTURES = ("ColQwen2ForRetrieval", "ColPaliForRetrieval", "ColQwen2_5", "ColPali")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    return {name: tiny_vision_models.build_page_retriever(root / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def collection_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_collection.write_folder(tmp_path_factory.mktemp("images") / "discs")


def encode(folder: Path, collection_folder: Path, role: Any) -> list[np.ndarray]:
    """Encode the documents, or the question alone, in batches as a run does."""
    model = resolve(folder)
    [method] = model.resolve_methods([])
    encoder: Any = model.load_encoder(build_spec(model, method, collection_folder))
    inputs = read_inputs(read_rows(collection_folder), ("text",)) if role == "document" else [QUESTION]
    tokens = encoder.tokenize(inputs, role)
    found: dict[int, np.ndarray] = {}
    for batch in iterate_batches(tokens):
        block = encoder.encode(tokens.select(batch))
        assert isinstance(block, RaggedVectors)
        parts = np.split(block.vectors, block.offsets[1:-1])
        found.update(zip(batch.tolist(), parts, strict=True))
    return [found[row] for row in sorted(found)]


@pytest.mark.parametrize("name", ["ColQwen2", "ColPali"])
def test_vectors_equal_those_of_transformers_own_class(
    name: str, folders: dict[str, Path], collection_folder: Path
) -> None:
    import transformers
    from transformers import AutoImageProcessor, AutoTokenizer

    folder = folders[f"{name}ForRetrieval"]
    processor = getattr(transformers, f"{name}Processor")(
        AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)
    )
    plain = getattr(transformers, f"{name}ForRetrieval").from_pretrained(folder).eval()
    images = [image for image in list_images(read_rows(collection_folder)) if image is not None]
    expected = []
    with torch.no_grad():
        for inputs in (*({"images": [image]} for image in images), {"text": ["A text about grey discs."]}):
            expected.append(plain(**processor(**inputs)).embeddings[0].numpy())
        question = plain(**processor(text=[QUESTION])).embeddings[0].numpy()
    for ours, theirs in zip(encode(folder, collection_folder, "document"), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(encode(folder, collection_folder, "query")[0], question, atol=1e-5)
    assert np.abs(expected[0][-1] - expected[1][-1]).max() > 1e-2  # else the test could not fail


def test_vectors_equal_the_computation_of_colpali_engine(folders: dict[str, Path], collection_folder: Path) -> None:
    """Its class is the vision-language model with its own positions, and a linear layer; its prompts have no end."""
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLModel

    folder = folders["ColQwen2_5"]
    plain, weights = Qwen2_5_VLModel.from_pretrained(folder).eval(), load_file(folder / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    padding = tokenizer.pad_token * 10

    def embed(prompt: str, image: Any = None) -> np.ndarray:
        inputs: dict[str, Any] = {}
        if image is not None:
            inputs = dict(image_processor(images=[image], return_tensors="pt"))
            count = int(inputs["image_grid_thw"].prod()) // 4
            prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * count)
        encoded = tokenizer(prompt, return_tensors="pt")
        types = (encoded["input_ids"] == plain.config.image_token_id).int()
        with torch.no_grad():
            states = plain(**encoded, **inputs, mm_token_type_ids=types).last_hidden_state[0]
        projected = states @ weights["custom_text_proj.weight"].T + weights["custom_text_proj.bias"]
        return torch.nn.functional.normalize(projected, dim=1).numpy()

    page = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|><|endoftext|>"
    documents = encode(folder, collection_folder, "document")
    for ours, image in zip(documents, list_images(read_rows(collection_folder)), strict=True):
        theirs = embed(f"Query: A text about grey discs.{padding}") if image is None else embed(page, image)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(
        encode(folder, collection_folder, "query")[0], embed(f"Query: {QUESTION}{padding}"), atol=1e-5
    )


def test_vectors_of_colpali_engines_folder_equal_plain_paligemma(
    folders: dict[str, Path], collection_folder: Path
) -> None:
    """PaliGemma's own processor gets its prompt, the tokenizer a question; all is read in both directions."""
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, AutoTokenizer, PaliGemmaForConditionalGeneration, PaliGemmaProcessor

    folder = folders["ColPali"]
    weights = load_file(folder / "model.safetensors")
    of_vlm = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    plain = load_with_names(PaliGemmaForConditionalGeneration, folder, of_vlm)
    processor = PaliGemmaProcessor(
        AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)
    )

    def embed(text: str, image: Any = None) -> np.ndarray:
        if image is None:
            inputs = processor.tokenizer(f"<bos>Query: {text}{'<pad>' * 10}", return_tensors="pt")
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        else:
            read = processor(text=["<image><bos>Describe the image."], images=[image])
            inputs = {name: torch.as_tensor(np.asarray(read[name])) for name in read if name != "labels"}
        with torch.no_grad():
            states = plain(**inputs, output_hidden_states=True).hidden_states[-1][0]
        projected = states @ weights["custom_text_proj.weight"].T + weights["custom_text_proj.bias"]
        return torch.nn.functional.normalize(projected, dim=1).numpy()

    documents = encode(folder, collection_folder, "document")
    for ours, image in zip(documents, list_images(read_rows(collection_folder)), strict=True):
        np.testing.assert_allclose(ours, embed("A text about grey discs.", image), atol=1e-5)
    np.testing.assert_allclose(encode(folder, collection_folder, "query")[0], embed(QUESTION), atol=1e-5)


def load_with_names(model_class: Any, folder: Path, weights: dict[str, torch.Tensor]) -> Any:
    """A model of transformers with these weights, none of which may be missing or unused."""
    from transformers import AutoConfig

    model, info = model_class.from_pretrained(
        None, config=AutoConfig.from_pretrained(folder), state_dict=weights, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("name", ["ColQwen2", "ColPali"])
def test_sentence_transformers_agrees(name: str, folders: dict[str, Path], collection_folder: Path) -> None:
    import transformers
    from sentence_transformers import MultiVectorEncoder
    from transformers import AutoImageProcessor, AutoTokenizer

    folder = folders[f"{name}ForRetrieval"]
    getattr(transformers, f"{name}Processor")(
        AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)
    ).save_pretrained(folder)
    library = MultiVectorEncoder(str(folder), device="cpu", processor_kwargs={"backend": "pil"})
    images = [image for image in list_images(read_rows(collection_folder)) if image is not None]
    for ours, image in zip(encode(folder, collection_folder, "document"), images, strict=False):
        [theirs] = library.encode_document([image])
        np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-4)
    [theirs] = library.encode_query([QUESTION])
    np.testing.assert_allclose(encode(folder, collection_folder, "query")[0], np.asarray(theirs), atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_ranks_pages_by_max_sim(
    architecture: str, folders: dict[str, Path], collection_folder: Path, tmp_path: Path
) -> None:
    [cell] = retbench.evaluate(folders[architecture], tasks=collection_folder, out=tmp_path / "out")
    assert cell.status == "done", cell.error
    record = json.loads((Path(cell.record) / "record.json").read_text())
    assert (record["method"], record["settings"]["retriever"]) == ("as-published", "multi-vector")
    documents = encode(folders[architecture], collection_folder, "document")
    scores = [(encode(folders[architecture], collection_folder, "query")[0] @ d.T).max(axis=1).sum() for d in documents]
    ids = read_rows(collection_folder).read_ids().to_pylist()
    best = [ids[row] for row in np.argsort(-np.array(scores), kind="stable")]
    assert read_ranking(Path(cell.record), "q1") == best
    [again] = retbench.evaluate(folders[architecture], tasks=collection_folder, out=tmp_path / "again")
    assert again.scores == cell.scores  # from stored vectors
    assert compare_runs(str(cell.record), str(again.record)).settings == []


def read_ranking(folder: Path, query: str) -> list[str]:
    from retbench.records.load_run import read_trec_run

    return read_trec_run(folder / "run.trec.gz")[query]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_alone_need_no_vision_tower(architecture: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = small_collection.write_folder(tmp_path / "small")
    [cell] = retbench.evaluate(folders[architecture], tasks=folder, out=tmp_path / "out")
    assert cell.status == "done", cell.error
    record = json.loads((Path(cell.record) / "record.json").read_text())
    assert "image_processor" not in record["settings"]["encoder"]


@pytest.mark.parametrize("architecture", ["ColPaliForRetrieval", "ColPali"])
def test_the_text_part_alone_reads_in_both_directions_whatever_is_in_the_batch(
    architecture: str, folders: dict[str, Path], collection_folder: Path
) -> None:
    model = resolve(folders[architecture])
    [method] = model.resolve_methods([])
    texts = [QUESTION, "a much longer question about a disc of another colour", "blue"]
    found = []
    for with_images in (True, False):
        task = small_collection.build_card(collection_folder)
        spec = model.build_encoder_spec(method, task, Overrides(), with_images)
        encoder: Any = model.load_encoder(spec)
        found.append(encoder.encode(encoder.tokenize(texts, "query")).vectors)
        alone = encoder.encode(encoder.tokenize(texts[2:], "query")).vectors
        np.testing.assert_allclose(found[-1][-len(alone) :], alone, atol=1e-5)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_another_method_is_refused(folders: dict[str, Path], collection_folder: Path, tmp_path: Path) -> None:
    [cell] = retbench.evaluate(folders["ColQwen2_5"], tasks=collection_folder, methods="last", out=tmp_path / "out")
    assert "late-interaction model" in str(cell.error)


def test_a_missing_projection_is_an_error(collection_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_vision_models.build_page_retriever(tmp_path / "ColQwen2_5", "ColQwen2_5")
    weights = load_file(folder / "model.safetensors")
    del weights["custom_text_proj.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"has no custom_text_proj\.bias"):
        encode(folder, collection_folder, "document")
