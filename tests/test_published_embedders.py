"""Published embedders: a sentence-transformers folder without a card of ours is run as its own files say.

Every folder is made by sentence-transformers itself, and the vectors must be those of its `encode`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers")

import sentence_transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling

from retbench.cards import catalog
from retbench.cards.engine import Engine, EngineName
from retbench.cards.method import Role
from retbench.cards.published_method import read_published_model
from retbench.engines import fingerprints, weights
from retbench.errors import DataError, InapplicableError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.overrides import Overrides
from tests import tiny_models
from tests.test_run import run_cells, run_command

WIDTH = tiny_models.WIDTH
PROMPTS = {"query": "Represent this query: ", "document": "Passage: ", "sts": "Similar: "}
TEXTS = [*tiny_models.SENTENCES[:6], "a long text that is cut somewhere, " * 40, "x"]

MakeFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights; its tokenizer puts a token before and after each text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("published") / "bare"
    tokenizer = tiny_models.build_tokenizer()
    tokenizer.chat_template = None
    around = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=around
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def make_folder(bare: Path, tmp_path: Path) -> MakeFolder:
    """Saves a folder of the given modules after the transformer."""

    def make(*modules: Any, name: str = "published", max_length: int | None = None, **options: Any) -> Path:
        first: Any = SentenceTransformer(str(bare), device="cpu")[0]
        if max_length:
            first.max_seq_length = max_length
        torch.manual_seed(5)
        SentenceTransformer(modules=[first, *modules], device="cpu", **options).save(str(tmp_path / name))
        return tmp_path / name

    return make


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def encode_here(folder: Path, role: Role, engine: EngineName = "transformers") -> np.ndarray:
    """The vectors of the default method, unscaled for `dot`, of a model that is only a folder."""
    model = ResolvedModel.resolve(catalog.find_model_card(str(folder)), None, print, Engine(engine))
    (method,) = model.resolve_methods([])
    task = catalog.find_task_card("stdlib-long-8192")
    encoder = model.load_encoder(model.build_encoder_spec(method, task, Overrides(dtype="float32")))
    vectors = encoder.encode(encoder.tokenize(TEXTS, role))
    assert vectors.shape[1] == encoder.dimension
    return vectors


def encode_there(folder: Path, role: Role) -> np.ndarray:
    published = SentenceTransformer(str(folder), device="cpu", processor_kwargs={"chat_template": None})
    encode = published.encode_query if role == "query" else published.encode_document
    return np.asarray(encode(TEXTS))


def normalise(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


HEADS: dict[str, Callable[[], list[Any]]] = {
    "cls": lambda: [Pooling(WIDTH, "cls"), Normalize()],
    "mean": lambda: [Pooling(WIDTH, "mean")],
    "weighted": lambda: [Pooling(WIDTH, "weightedmean")],
    "last": lambda: [Pooling(WIDTH, "lasttoken"), Normalize()],
    "dense": lambda: [Pooling(WIDTH, "cls"), Dense(WIDTH, 16), Normalize()],
    "two-dense": lambda: [
        Pooling(WIDTH, "mean"),
        Dense(WIDTH, 128, bias=False, activation_function=torch.nn.Identity()),
        Dense(128, 32, activation_function=torch.nn.GELU()),
    ],
    "residual": lambda: [
        Pooling(WIDTH, "mean"),
        Dense(WIDTH, WIDTH, use_residual=True),
        Dense(WIDTH, 16, use_residual=True),
    ],
    "layer-norm": lambda: [Pooling(WIDTH, "mean"), Normalize(), LayerNorm(WIDTH)],
}


@pytest.mark.parametrize("engine", ["transformers", "sentence-transformers"])
@pytest.mark.parametrize("head", HEADS)
def test_the_vectors_are_those_of_the_published_model(make_folder: MakeFolder, head: str, engine: EngineName) -> None:
    folder = make_folder(*HEADS[head](), prompts=PROMPTS, max_length=48)
    roles: tuple[Role, ...] = ("query", "document")
    for role in roles:
        difference = encode_here(folder, role, engine) - normalise(encode_there(folder, role))
        assert np.abs(difference).max() < 1e-5
    assert np.abs(encode_here(folder, "query") - encode_here(folder, "document")).max() > 1e-3


def test_the_dot_product_keeps_the_length_of_vectors(make_folder: MakeFolder) -> None:
    folder = make_folder(Pooling(WIDTH, "mean"), similarity_fn_name="dot")
    assert read_published_model(folder).method.similarity == "dot"
    assert np.allclose(encode_here(folder, "query"), encode_there(folder, "query"), atol=1e-5)
    unit = make_folder(Pooling(WIDTH, "mean"), Normalize(), similarity_fn_name="dot", name="unit")
    assert read_published_model(unit).method.similarity == "cosine"


def test_a_decoder_folder_is_run_without_its_chat_template(model: Path, tmp_path: Path) -> None:
    first = SentenceTransformer(str(model), device="cpu", processor_kwargs={"chat_template": None})[0]
    modules = [first, Pooling(WIDTH, "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu").save(str(tmp_path / "decoder"))
    assert np.allclose(
        encode_here(tmp_path / "decoder", "query"), encode_there(tmp_path / "decoder", "query"), atol=1e-5
    )


def test_show_and_the_record_have_the_published_method(make_folder: MakeFolder, task: Path, out: Path) -> None:
    folder = make_folder(*HEADS["dense"](), prompts=PROMPTS, max_length=48)
    shown = json.loads(run_command("show", "model", folder, "--json").stdout)
    own = shown["method"]["own"]
    assert (own["name"], own["query"], own["document"]) == (
        "as-published",
        "Represent this query: {text}",
        "Passage: {text}",
    )
    assert "pooling cls, Dense 64 to 16 Tanh, Normalize" in own["title"]
    assert (shown["max_length"], shown["notes"]) == (48, ["Prompts that a search does not use: sts."])
    (cell,) = run_cells("run", "--model", folder, "--task", task, "--out", out)
    assert (cell["status"], cell["method"]) == ("done", "as-published")
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    assert record["cards"]["method"] == own
    assert record["settings"]["encoder"]["modules"] == fingerprints.compute_modules_fingerprint(folder)
    assert record["settings"]["encoder"]["document_limit"] == 48
    assert str(folder.parent) not in json.dumps(record)
    sample = json.loads((Path(cell["record"]) / "sample.json").read_text())
    assert "Represent this query: how to brew" in sample["query"]["read"]


def test_one_pooling_is_our_own_method(make_folder: MakeFolder) -> None:
    method = read_published_model(make_folder(*HEADS["cls"](), prompts=PROMPTS)).method
    assert (method.pooling, method.special_tokens, method.cut) == ("first", True, "tokens")
    assert method.fidelity == "exact"


@pytest.mark.parametrize("engine", ["transformers", "sentence-transformers"])
def test_the_dry_run_shows_the_published_prefix(make_folder: MakeFolder, task: Path, engine: str) -> None:
    folder = make_folder(*HEADS["cls"](), prompts=PROMPTS)
    line = ("run", "--model", folder, "--task", task, "--method", "as-published", "--engine", engine, "--dry-run")
    answer = run_command(*line)
    assert "Represent this query: how to brew a hot drink" in answer.output
    assert "Passage: " in answer.output
    changed = run_command(*line[:-4], "as-published:query=Q {text}", *line[-3:])
    assert "Q how to brew a hot drink" in changed.output
    assert "Passage: " in changed.output


def test_the_preview_of_token_ids_has_the_published_prefix(make_folder: MakeFolder) -> None:
    folder = make_folder(*HEADS["cls"](), prompts=PROMPTS)
    answer = run_command("show", "model", folder, "--text", "Bees.", "--method", "as-published")
    assert "Represent this query: Bees." in answer.output


def test_a_hub_model_without_a_card_gets_its_method_from_its_files(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(*HEADS["cls"](), prompts=PROMPTS, max_length=32)
    card = catalog.find_model_card("someone/embedder")
    assert card.method is None
    found = weights.LocalWeights(folder, "f", None, 1)
    monkeypatch.setattr(weights, "find_local_weights", lambda card, path=None: found)
    (method,) = ResolvedModel.resolve(card, None, print).resolve_methods([])
    assert (method.pooling, method.query) == ("first", "Represent this query: {text}")
    shown = json.loads(run_command("show", "model", "someone/embedder", "--json").stdout)
    assert (shown["method"]["own"]["pooling"], shown["max_length"]) == ("first", 32)


def test_prompts_of_older_folders(make_folder: MakeFolder) -> None:
    folder = make_folder(*HEADS["mean"](), prompts={"query": "q: ", "passage": "p: "})
    assert read_published_model(folder).method.document == "p: {text}"
    file = folder / "config_sentence_transformers.json"
    edit_json(file, prompts={"all": "a: "}, default_prompt_name="all")
    method = read_published_model(folder).method
    assert (method.query, method.document) == ("a: {text}", "a: {text}")
    published = SentenceTransformer(str(folder), device="cpu")
    assert np.allclose(encode_here(folder, "query"), normalise(published.encode(TEXTS)), atol=1e-5)
    file.unlink()
    assert read_published_model(folder).method.query == "{text}"


def test_lengths_come_from_the_folder_else_from_the_tokenizer_and_the_model(make_folder: MakeFolder) -> None:
    folder = make_folder(*HEADS["mean"]())
    assert SentenceTransformer(str(folder), device="cpu").max_seq_length == 128
    assert read_published_model(folder).max_length == 128
    edit_json(folder / "sentence_bert_config.json", max_seq_length=20)
    assert read_published_model(folder).max_length == 20


def test_the_older_form_of_pooling_configs(make_folder: MakeFolder) -> None:
    folder = make_folder(*HEADS["mean"]())
    file = folder / "1_Pooling" / "config.json"
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    file.write_text(json.dumps({"word_embedding_dimension": WIDTH, **flags}))
    assert read_published_model(folder).method.pooling == "first"
    assert np.allclose(encode_here(folder, "query"), normalise(encode_there(folder, "query")), atol=1e-5)


@pytest.mark.parametrize("engine", ["transformers", "sentence-transformers"])
def test_a_module_without_files_needs_no_folder(make_folder: MakeFolder, engine: EngineName) -> None:
    folder = make_folder(*HEADS["dense"]())
    expected = encode_here(folder, "query", engine)
    (folder / "3_Normalize" / "config.json").unlink()
    assert not list((folder / "3_Normalize").iterdir())  # as older versions of the library leave it
    assert fingerprints.compute_modules_fingerprint(folder)
    assert np.allclose(encode_here(folder, "query", engine), expected)
    assert np.allclose(np.linalg.norm(expected, axis=1), 1)
    shutil.rmtree(folder / "3_Normalize")
    assert np.allclose(encode_here(folder, "query", engine), expected)


def change_modules(folder: Path, position: int, **changes: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[position].update(changes)
    (folder / "modules.json").write_text(json.dumps(modules))


def change_transformer(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "sentence_bert_config.json", **changes)


MEAN = Pooling(WIDTH, "mean")
MESSAGES = {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}
REFUSED: dict[str, tuple[list[Any], dict[str, Any]]] = {  # by the reason: the modules, options of the model
    "2 poolings (cls, mean)": ([Pooling(WIDTH, ("cls", "mean"))], {}),
    "max pooling": ([Pooling(WIDTH, "max")], {}),
    "its similarity is 'euclidean'": ([MEAN], {"similarity_fn_name": "euclidean"}),
    "include_prompt = false": ([Pooling(WIDTH, "mean", include_prompt=False)], {"prompts": PROMPTS}),
    "truncate_dim": ([MEAN], {"truncate_dim": 8}),
    "the module mine.Head": ([MEAN, Normalize()], {}),
    "outside its folder": ([MEAN], {}),
    "has no model.safetensors": ([MEAN, Dense(WIDTH, 8)], {}),
    "the argument rotary_scaling": ([MEAN], {}),
    "puts each text into a chat": ([MEAN], {}),
    "last hidden state": ([MEAN], {}),
    "lower case": ([MEAN], {}),
    "expands queries": ([MEAN], {}),
}
CHANGES: dict[str, Callable[[Path], Any]] = {  # what is changed in the saved folder
    "the module mine.Head": lambda folder: change_modules(folder, 2, type="mine.Head"),
    "outside its folder": lambda folder: change_modules(folder, 1, path="../1_Pooling"),
    "has no model.safetensors": lambda folder: (folder / "2_Dense" / "model.safetensors").unlink(),
    "the argument rotary_scaling": change_transformer(model_args={"rotary_scaling": 2}),
    "puts each text into a chat": change_transformer(modality_config=MESSAGES),
    "last hidden state": change_transformer(module_output_name="sentence_embedding"),
    "lower case": change_transformer(do_lower_case=True),
    "expands queries": change_transformer(query_expansion={"strategy": "fixed", "length": 32}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(
    make_folder: MakeFolder, task: Path, out: Path, reason: str
) -> None:
    modules, options = REFUSED[reason]
    folder = make_folder(*modules, **options)
    CHANGES.get(reason, bool)(folder)
    answer = run_command("run", "--model", folder, "--task", task, "--out", out)
    assert answer.exit_code != 0
    assert reason in answer.output
    assert not list(out.rglob("record.json"))
    (cell,) = run_cells("run", "--model", folder, "--task", task, "--out", out, "--method", "mean")
    assert cell["status"] == "done"  # another method may still be named


def test_two_poolings_run_with_their_own_library(make_folder: MakeFolder) -> None:
    folder = make_folder(Pooling(WIDTH, ("cls", "mean")), prompts=PROMPTS)
    vectors = encode_here(folder, "query", "sentence-transformers")
    assert np.allclose(vectors, normalise(encode_there(folder, "query")), atol=1e-5)


def test_damaged_dense_weights_are_refused(make_folder: MakeFolder) -> None:
    folder = make_folder(*HEADS["dense"]())
    edit_json(folder / "2_Dense" / "config.json", out_features=8)
    with pytest.raises(DataError, match="16x64"):
        encode_here(folder, "query")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config_sentence_transformers.json", {"prompts": ["query: "]}),
        ("sentence_bert_config.json", {"max_seq_length": "many"}),
        ("sentence_bert_config.json", {"max_seq_length": -1}),
        ("sentence_bert_config.json", {"modality_config": ["text"]}),
        ("sentence_bert_config.json", {"model_args": 3}),
        ("1_Pooling/config.json", {"pooling_mode": 3}),
        ("2_Dense/config.json", {"in_features": None}),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Module.forward"}),
        ("2_Dense/config.json", {"activation_function": "os.system"}),
        ("tokenizer_config.json", {"model_max_length": "many"}),
    ],
)
def test_damaged_configs_are_errors_of_their_folder(make_folder: MakeFolder, file: str, changes: Any) -> None:
    folder = make_folder(*HEADS["dense"]())
    edit_json(folder / file, **changes)
    with pytest.raises(DataError, match=r"published|2_Dense|activation"):
        encode_here(folder, "query")


def test_a_folder_without_modules_is_no_published_model(model: Path) -> None:
    resolved = ResolvedModel.resolve(catalog.find_model_card(str(model)), None, print)
    with pytest.raises(InapplicableError, match=r"no modules\.json"):
        resolved.build_encoder_spec(
            catalog.find_method("as-published"), catalog.find_task_card("stdlib-text"), Overrides()
        )


@pytest.fixture
def save_other_model(bare: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Saves a SPLADE, a ColBERT and a cross-encoder with sentence-transformers, and as PyLate and the authors do."""

    def save(kind: str) -> Path:
        folder = tmp_path / kind
        if kind == "SparseEncoder":
            from transformers import BertConfig, BertForMaskedLM

            shutil.copytree(bare, tmp_path / "mlm")
            BertForMaskedLM(BertConfig.from_pretrained(bare)).save_pretrained(tmp_path / "mlm")
            sentence_transformers.SparseEncoder(str(tmp_path / "mlm"), device="cpu").save(str(folder))
        elif kind == "CrossEncoder":
            sentence_transformers.CrossEncoder(str(bare), device="cpu", num_labels=1).save(str(folder))
        elif kind == "MultiVectorEncoder":
            sentence_transformers.MultiVectorEncoder(str(bare), device="cpu").save(str(folder))
        else:
            shutil.copytree(bare, folder)
        if kind == "PyLate":
            types = ("sentence_transformers.models.Transformer", "pylate.models.Dense.Dense")
            modules = [
                {"idx": i, "name": str(i), "path": "" if i == 0 else "1_Dense", "type": t} for i, t in enumerate(types)
            ]
            (folder / "modules.json").write_text(json.dumps(modules))
        if kind == "Stanford":
            edit_json(folder / "config.json", architectures=["HF_ColBERT"])
        return folder

    return save


OTHER_MODELS = {
    "SparseEncoder": "sparse encoder (SPLADE)",
    "MultiVectorEncoder": "late-interaction model (ColBERT)",
    "PyLate": "late-interaction model (ColBERT)",
    "Stanford": "late-interaction model (ColBERT)",
    "CrossEncoder": "cross-encoder",
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
@pytest.mark.parametrize("method", [("--method", "mean"), ("--engine", "sentence-transformers", "--method", "mean")])
def test_models_of_other_kinds_are_not_run_as_dense_ones(
    save_other_model: Callable[[str], Path], task: Path, out: Path, kind: str, method: tuple[str, ...]
) -> None:
    answer = run_command("run", "--model", save_other_model(kind), "--task", task, "--out", out, *method)
    assert answer.exit_code == 4
    assert OTHER_MODELS[kind] in answer.output
    assert not list(out.rglob("record.json"))


def test_a_cross_encoder_is_not_run_as_an_embedder(
    save_other_model: Callable[[str], Path], task: Path, out: Path
) -> None:
    answer = run_command("run", "--model", save_other_model("CrossEncoder"), "--task", task, "--out", out)
    assert answer.exit_code == 4
    assert "cross-encoder" in answer.output


def test_a_card_does_not_make_a_splade_model_dense(
    save_other_model: Callable[[str], Path], task: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fresh_catalog: Callable[[], None],
) -> None:  # fmt: skip
    card = tmp_path / "cards" / "model_cards" / "claimed.toml"
    card.parent.mkdir(parents=True)
    card.write_text('name = "claimed"\n[method]\ndefault = "last"\n')
    monkeypatch.setenv("RETBENCH_CARDS", str(tmp_path / "cards"))
    fresh_catalog()
    folder = save_other_model("SparseEncoder")
    answer = run_command("run", "--model", "claimed", "--weights", folder, "--task", task, "--out", out)
    assert "sparse encoder (SPLADE)" in answer.output
    assert answer.exit_code == 4
