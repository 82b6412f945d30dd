"""Every method gives the token ids of its source, and the vector of a plain transformers computation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.cards.method import Method, Role
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import backbone
from retbench.errors import DataError, InapplicableError, UsageError
from tests import plain_transformers, small_collection, tiny_models
from tests.test_run import run_cells, run_command

TEXTS = (
    "The heart pumps blood.",
    'A "quoted" word, ünïcödé and 世界.',
    "x",
    "Bees carry pollen from one flower to the next. " * 3,  # longer than the limit
    "def add(a, b):\n\treturn a + b",
)
LIMIT = 40


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def loaded(decoder: Path) -> backbone.Backbone:
    return backbone.load_backbone(decoder, "float32", torch.device("cpu"))


def build_encoder(loaded: backbone.Backbone, method: Method) -> BackboneEncoder:
    spec = EncoderSpec("weights", method, method.instruction, LIMIT, LIMIT, "float32")
    used = loaded.with_method(method.attention, method.layer)
    return BackboneEncoder(spec, used, PromptTokenizer(used.tokenizer, method, method.instruction))


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("name", plain_transformers.METHODS)
def test_token_ids_and_vectors_match_the_source(
    decoder: Path, loaded: backbone.Backbone, name: str, role: Role
) -> None:
    encoder = build_encoder(loaded, catalog.find_method(name))
    tokens = encoder.tokenize(TEXTS, role)
    vectors = encoder.encode(tokens)
    for row, text in enumerate(TEXTS):
        pooled_ids = plain_transformers.METHODS[name](loaded.tokenizer, text, role, LIMIT)
        assert tokens[row].tolist() == pooled_ids.ids, text
        assert (
            (vectors[row] / np.linalg.norm(vectors[row]))  # a method that compares by dot product keeps the length
            @ plain_transformers.compute_vector(decoder, pooled_ids, name in plain_transformers.BIDIRECTIONAL)
            > 0.99999
        ), text


@pytest.mark.parametrize("layer", [0, 1, -2])
def test_a_chosen_layer_is_numbered_as_in_transformers(decoder: Path, loaded: backbone.Backbone, layer: int) -> None:
    encoder = build_encoder(loaded, catalog.find_method(f"mean:layer={layer}"))
    vectors = encoder.encode(encoder.tokenize(TEXTS, "document"))
    for row, text in enumerate(TEXTS):
        pooled_ids = plain_transformers.METHODS["mean"](loaded.tokenizer, text, "document", LIMIT)
        assert vectors[row] @ plain_transformers.compute_vector(decoder, pooled_ids, False, layer) > 0.99999


def test_bidirectional_attention_leaves_the_loaded_model_causal(loaded: backbone.Backbone) -> None:
    causal, turned = (
        build_encoder(loaded, catalog.find_method("mean")),
        build_encoder(loaded, catalog.find_method("llm2vec")),
    )
    tokens = causal.tokenize(TEXTS, "document")
    before = causal.encode(tokens)
    assert (turned.encode(tokens)[3] @ before[3]) < 0.9999
    assert (causal.encode(tokens) == before).all()


@pytest.mark.parametrize("name", ["echo", "llm2vec"])
@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_text_has_a_vector_with_every_pooling_span(loaded: backbone.Backbone, name: str, text: str) -> None:
    encoder = build_encoder(loaded, catalog.find_method(name))
    assert encoder.encode(encoder.tokenize([text], "document")).shape == (1, tiny_models.WIDTH)


def test_a_batch_keeps_the_order_of_the_texts(loaded: backbone.Backbone) -> None:
    encoder = build_encoder(loaded, catalog.find_method("echo"))
    tokens, order = encoder.tokenize(TEXTS, "query"), torch.tensor([3, 0]).numpy()
    batch = tokens.select(order)
    assert [row.tolist() for row in batch] == [tokens[3].tolist(), tokens[0].tolist()]
    assert batch.pooling_starts is not None
    assert tokens.pooling_starts is not None
    assert batch.pooling_starts.tolist() == tokens.pooling_starts[order].tolist()


def test_an_option_changes_one_field_and_the_method_name() -> None:
    method = catalog.find_method("promptreps:layer=-2,answer=In a word: ")
    assert (method.layer, method.answer) == (-2, "In a word: ")
    assert (method.name, method.fidelity) == ("promptreps:answer=In a word: ,layer=-2", "ours")
    assert catalog.find_method("promptreps").fidelity == "exact"


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("mean:layr=3", "no option 'layr'"),
        ("mean:layer=deep", "expected int"),
        ("mean:layer", "'layer' has no value"),
        ("mean:pooling=most", "is not allowed"),
        ("mean:fidelity=exact", "no option 'fidelity'"),
        ("echo:chat=true", "inside a chat"),
        ("meen:layer=3", "no method called 'meen'"),
    ],
)
def test_a_wrong_option_is_a_usage_error(spelling: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        catalog.find_method(spelling)


def test_a_layer_the_model_lacks_is_a_usage_error(loaded: backbone.Backbone) -> None:
    with pytest.raises(UsageError, match="uses layer 3, but the model has 2"):
        build_encoder(loaded, catalog.find_method("mean:layer=3"))


def test_an_eos_method_needs_an_end_token() -> None:
    bare = tiny_models.build_tokenizer()
    bare.eos_token = None
    with pytest.raises(InapplicableError, match="needs an end-of-sequence token"):
        PromptTokenizer(bare, catalog.find_method("eos"))


def test_a_sparse_method_takes_the_last_state() -> None:
    with pytest.raises(DataError, match="needs the last state"):
        Method("odd", "", "ours", "a test", "mean", kind="sparse")


def test_every_preset_is_tested_here_or_with_its_engine() -> None:
    by_terms = {method.name for method in catalog.load_methods() if method.kind != "dense"}
    assert by_terms == {
        "promptreps-sparse",
        "promptreps-hybrid",
    }  # against the whole language model: test_sparse_retrieval.py
    tested_elsewhere = {method.name for method in catalog.load_methods() if method.pooling == "model"}
    assert tested_elsewhere == {"as-published"}  # against the published library: test_sentence_transformers.py
    assert {
        method.name for method in catalog.load_methods()
    } == plain_transformers.METHODS.keys() | by_terms | tested_elsewhere


def test_every_preset_has_a_source() -> None:
    for method in catalog.load_methods():
        assert method.source, method.name
        assert method.fidelity == "ours" or method.paper, method.name


def test_the_board_shows_the_fidelity_of_a_method(decoder: Path, tmp_path: Path) -> None:
    task, out = small_collection.write_folder(tmp_path / "pantry"), tmp_path / "results"
    line = ("run", "--model", decoder, "--task", task, "--out", out)
    run_cells(*line, "--method", "promptreps", "--method", "echo", "--method", "mean:layer=1", "--method", "mean")
    assert (
        "Fidelity of the methods to their sources: exact: promptreps; reconstructed: echo; ours: mean, mean:layer=1."
    ) in run_command("report", out).output
    output = run_command("show", "method", "mean").output
    assert "layer" not in output, "a field without a value is a choice there, and is left out"
    assert "not known" not in output
