"""A hub in a folder: every repository that a study asks for, under its own name, with tiny models and collections.

Models have the architecture of their family and two layers of random weights. Collections have the layout of their own
repository, so mteb's loaders read them. Only the library of the hub is replaced; fetching, checking, reading, training
and scoring are those of a real run.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.cards.task import TaskCard
from retbench.corpora.published_files import PublishedFile
from tests import tiny_models, tiny_vision_models
from tests.hub_repositories import REVISION, list_hub_files, write_splits
from tests.image_repositories import write_photographs

Rows = list[dict[str, Any]]
Configs = dict[str, dict[str, Rows]]

DOCUMENTS = [(f"d{n}", f"Title {n}", sentence) for n, sentence in enumerate(tiny_models.SENTENCES[:12])]
TEST_QUERIES = [("q0", "Which organ pumps the blood?", "d0"), ("q1", "What makes the bones strong?", "d3")]
TRAIN_QUERIES = [(f"t{n}", " ".join(text.split()[:4]), document) for n, (document, _, text) in enumerate(DOCUMENTS)]
VISION_FAMILIES = {
    "clip": "clip", "siglip": "siglip", "qwen2-vl": "qwen2_vl", "qwen2.5": "qwen2_5_vl", "qwen3-vl": "qwen3_vl",
}  # fmt: skip
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # of LongEmbed's synthetic tasks


@dataclass
class ToyHub:
    """The repositories in `root`, with the interface of the hub's library that retbench uses."""

    root: Path
    tasks: set[str] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)  # of the web, by address

    def get_folder(self, repo: str, kind: str) -> Path:
        """The folder of a repository; the hub has no other."""
        folder = self.root / kind / repo
        if not folder.is_dir():
            raise FileNotFoundError(f"the toy hub has no {kind} {repo}")
        return folder

    def model_info(self, repo: str, *, revision: str | None = None) -> Any:
        """The resolved revision of a model."""
        self.get_folder(repo, "models")
        return SimpleNamespace(sha=revision or REVISION)

    def dataset_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        """The resolved revision and the files of a dataset."""
        listed = list_hub_files(self.get_folder(repo, "datasets")).items()
        files = [SimpleNamespace(rfilename=name, size=size, blob_id=blob, lfs=None) for name, (size, blob) in listed]
        return SimpleNamespace(sha=revision or REVISION, siblings=files)

    def snapshot_download(
        self, repo: str, *, local_dir: Path, repo_type: str = "model", allow_patterns: Any = None,
        dry_run: bool = False, **_: Any,
    ) -> list[Any]:  # fmt: skip
        """Copy the wanted files, or list them."""
        folder = self.get_folder(repo, f"{repo_type}s")
        names = [name for name in list_hub_files(folder) if not allow_patterns or _matches(name, allow_patterns)]
        for name in () if dry_run else names:
            target = Path(local_dir) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
        return [SimpleNamespace(filename=name, file_size=(folder / name).stat().st_size) for name in names]

    def load_dataset(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The library's own loader; a repository's name is replaced by its folder here."""

        def load(path: str, *words: Any, **options: Any) -> Any:
            folder = self.root / "datasets" / path
            return original(str(folder) if folder.is_dir() else path, *words, **options)

        return load

    def add_model(self, card: ModelCard) -> None:
        """Write a tiny model of the card's family into its repository; of an adapter also its parent."""
        if card.weights is None or card.weights.repo is None:
            return
        folder = self.root / "models" / card.weights.repo
        if folder.is_dir():
            return
        if card.weights.layout == "folder":
            build_toy_model(card, folder)
            return
        parent = catalog.find_model_card(str(card.parent))
        self.add_model(parent)
        for repo in filter(None, (card.weights.base_adapter, card.weights.repo)):
            build_toy_adapter(
                self.root / "models" / str(parent.weights and parent.weights.repo), self.root / "models" / repo
            )

    def add_dataset(self, repo: str, configs: Configs) -> None:
        """Add configurations to a repository; several tasks may share one."""
        folder = self.root / "datasets" / repo
        file = folder.with_name(f"{folder.name}.configs.json")
        known: Configs = json.loads(file.read_text()) if file.exists() else {}
        for name, splits in configs.items():
            known.setdefault(name, {}).update(splits)
        write_splits(folder, known)
        file.write_text(json.dumps(known))

    def add_task(self, card: TaskCard) -> None:
        """Write the repositories of a task, once."""
        source = card.source
        if card.name in self.tasks:
            return
        self.tasks.add(card.name)
        if card.source.kind == "generator":
            return
        if card.name.endswith("-t2i"):
            folder = self.root / "datasets" / str(card.source.repo)
            write_photographs(card, folder, [*TEST_QUERIES, *TRAIN_QUERIES])
            return
        if source.kind == "loco":
            self.add_loco(card)
            return
        if source.kind == "candidates":
            self.add_candidate_lists(card)
            return
        self.add_replaced_queries(card)
        self.add_dataset(str(source.repo), build_configs(card))
        if source.corpus_repo:
            rows = [{"docid": name, "title": title, "text": text} for name, title, text in DOCUMENTS]
            self.add_dataset(source.corpus_repo, {"default": {"train": rows}})

    def add_candidate_lists(self, card: TaskCard) -> None:
        """Add the candidate lists of a task, and the judgments that its card has at a URL."""
        source = card.source
        lists = [
            {"query": text, "hits": [
                {"qid": query, "docid": name, "score": 9.0 - rank, "content": content}
                for rank, (name, _, content) in enumerate(DOCUMENTS)
            ]}
            for query, text, _ in TEST_QUERIES
        ]  # fmt: skip
        file = self.root / "datasets" / str(source.repo) / str(source.member)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in lists))
        judgments = "".join(f"{query} 0 {name} 1\n" for query, _, name in TEST_QUERIES)
        self.files[str(source.url)] = judgments.encode()
        if source.judgments_file:
            file = self.root / "datasets" / str(source.repo) / source.judgments_file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(judgments)
        if source.exclusions_url:
            self.files[source.exclusions_url] = f"{TEST_QUERIES[0][0]} {DOCUMENTS[-1][0]}\n".encode()

    def add_replaced_queries(self, card: TaskCard) -> None:
        """Add the queries that a card puts in the place of its collection's: rewritten ones, or other ones at a URL."""
        source = card.source
        if source.queries_file:
            file = self.root / "datasets" / str(source.queries_repo) / source.queries_file
            file.parent.mkdir(parents=True, exist_ok=True)
            ids = [name for name, _, _ in TEST_QUERIES]
            pq.write_table(pa.table({"id": ids, "query": [f"rewritten {text}" for _, text, _ in TEST_QUERIES]}), file)
        if source.queries_url:
            self.files[source.queries_url] = "".join(f"{name}\t{text}\n" for name, text, _ in TEST_QUERIES).encode()
            judgments = "".join(f"{query} 0 {name} 2\n" for query, _, name in TEST_QUERIES)
            self.files[str(source.url)] = judgments.encode()

    def fetch_file(self, file: PublishedFile) -> None:
        """Put a file of the web into the cache; its checksum is that of the real one."""
        file.file.parent.mkdir(parents=True, exist_ok=True)
        file.file.write_bytes(self.files[file.url])

    def hf_hub_download(self, repo: str, name: str, *, local_dir: Path, **_: Any) -> None:
        """Copy one file of a dataset repository."""
        target = Path(local_dir) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / "datasets" / repo / name, target)

    def add_loco(self, card: TaskCard) -> None:
        """Add the rows of one LoCo task to the two repositories that all of them share."""
        subset = card.source.subset
        for repo, rows in {
            card.source.repo: [
                {"dataset": subset, "pid": f"{subset}_{d}", "passage": text} for d, _, text in DOCUMENTS
            ],
            card.source.queries_repo: [
                {"dataset": subset, "qid": f"{subset}_{q}", "query": text, "answer_pids": [f"{subset}_{d}"]}
                for q, text, d in TEST_QUERIES
            ],
        }.items():
            file = self.root / "datasets" / f"{repo}.configs.json"
            known = json.loads(file.read_text())["default"][card.split] if file.exists() else []
            self.add_dataset(str(repo), {"default": {card.split: [*known, *rows]}})


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def build_configs(card: TaskCard) -> Configs:
    """The configurations of a task's repository, in the layout that its mteb loader expects."""
    source = card.source
    name, repo = str(source.mteb), str(source.repo)
    if name.startswith("Bright"):
        return _build_bright(card)
    if repo == "dwzhu/LongEmbed":
        return {_find_longembed_config(name): _build_longembed()}
    if name.startswith("R2MED"):
        return _build_r2med()
    if name.startswith(("COIRCodeSearchNet", "CodeSearchNetCC")):
        return _build_retrieval(card, f"{source.subset}-", {"partition": "test"})
    fields = {"instruction": "Find a tool."} if name == "ToolRetrieval" else {}
    return _build_retrieval(card, f"{source.subset}-" if source.subset else "", fields)


def _build_retrieval(card: TaskCard, prefix: str, query_fields: Mapping[str, str]) -> Configs:
    """The usual layout: corpus, queries, judgments; with a train split for adaptors."""
    corpus = [{"_id": name, "title": title, "text": text} for name, title, text in DOCUMENTS]
    queries = [{"_id": name, "text": text, **query_fields} for name, text, _ in (*TEST_QUERIES, *TRAIN_QUERIES)]
    has_half = card.split != card.published_split  # its train and test queries are halves of one split
    judged_queries = (*TEST_QUERIES, *TRAIN_QUERIES) if has_half else TEST_QUERIES
    splits = {"train": TRAIN_QUERIES, card.published_split: judged_queries}
    judgments = {
        split: [{"query-id": query, "corpus-id": document, "score": 1} for query, _, document in rows]
        for split, rows in splits.items()
    }
    judged = f"{prefix}qrels" if prefix else "default"
    return {f"{prefix}corpus": {"corpus": corpus}, f"{prefix}queries": {"queries": queries}, judged: judgments}


def _build_bright(card: TaskCard) -> Configs:
    domain = card.name.removeprefix("bright-").removesuffix("-gpt4-reason").replace("-", "_")
    documents = [{"id": name, "content": text} for name, _, text in DOCUMENTS]
    examples = [
        {"id": name, "query": text, "gold_ids": [document], "excluded_ids": ["N/A"]}
        for name, text, document in TEST_QUERIES
    ]
    return {"documents": {domain: documents}, "examples": {domain: examples}}


def _find_longembed_config(mteb_name: str) -> str:
    import mteb

    return str(mteb.get_task(mteb_name).metadata.dataset["name"])


def _build_longembed() -> dict[str, Rows]:
    """Rows of all lengths, with the columns of all three tables; the real tasks ignore the length."""
    corpus = [_build_longembed_row("", document, text, n) for document, _, text in DOCUMENTS for n in LENGTHS]
    queries = [_build_longembed_row(query, "", text, n) for query, text, _ in TEST_QUERIES for n in LENGTHS]
    judged = [_build_longembed_row(query, document, "", n) for query, _, document in TEST_QUERIES for n in LENGTHS]
    return {"corpus": corpus, "queries": queries, "qrels": judged}


def _build_longembed_row(query: str, document: str, text: str, length: int) -> dict[str, Any]:
    return {"qid": f"{query}-{length}", "doc_id": f"{document}-{length}", "text": text, "context_length": length}


def _build_r2med() -> Configs:
    return {
        "corpus": {"corpus": [{"id": name, "text": text} for name, _, text in DOCUMENTS]},
        "query": {"query": [{"id": name, "text": text} for name, text, _ in TEST_QUERIES]},
        "qrels": {"qrels": [{"q_id": query, "p_id": document, "score": 1} for query, _, document in TEST_QUERIES]},
    }


def build_msmarco_training_rows() -> Configs:
    """Tevatron's training file: a query, a positive passage and negative ones."""
    passages = [{"docid": name, "title": title, "text": text} for name, title, text in DOCUMENTS]
    rows = [
        {"query_id": name, "query": text, "positive_passages": [passages[n]],
         "negative_passages": [*passages[:n], *passages[n + 1 :]]}
        for n, (name, text, _) in enumerate(TRAIN_QUERIES)
    ]  # fmt: skip
    return {"default": {"train": rows}}


def build_toy_model(card: ModelCard, folder: Path) -> None:
    """A model of the card's family with two layers, its random weights, and a byte-level tokenizer."""
    import torch
    import transformers

    if card.specialisation == "vision":
        tiny_vision_models.build_vision_model(folder, VISION_FAMILIES[str(card.family)])
        return
    tokens = tiny_models.build_tokenizer()
    window = card.context_length or 512
    sizes = {
        "vocab_size": tiny_models.VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": window, "pad_token_id": tokens.pad_token_id,
    }  # fmt: skip
    decoder = {**sizes, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": tokens.eos_token_id}
    decoder["tie_word_embeddings"] = True
    kind = _find_architecture(card)
    if kind in ("Bert", "XLMRoberta"):
        config = getattr(transformers, f"{kind}Config")(**sizes)
        model_class = getattr(transformers, f"{kind}Model")
    else:
        config = getattr(transformers, f"{kind}Config")(**decoder)
        model_class = getattr(transformers, f"{kind}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, card.name)))
        model = model_class(config)
    if model.can_generate():  # every token ends an answer: a random model repeats one and would write to its limit
        model.generation_config.eos_token_id = list(range(tiny_models.VOCABULARY))
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


def build_toy_adapter(parent: Path, folder: Path) -> None:
    """A LoRA adapter over a tiny model, with random weights."""
    import peft
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(sum(map(ord, folder.name)))
        warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
        model = transformers.AutoModel.from_pretrained(parent)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(folder)


def _find_architecture(card: ModelCard) -> str:
    """The class of transformers by the card's family."""
    families = {"qwen2.5": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "phi": "Phi3", "mistral": "Mistral",
                "e2rank": "Qwen3", "e5": "Bert", "bge": "Bert", "contriever": "Bert", "minilm": "Bert"}  # fmt: skip
    multilingual = card.name.startswith(("bge-m3", "multilingual-e5"))
    return "XLMRoberta" if multilingual else families[str(card.family)]


@pytest.fixture
def toy_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToyHub]:
    """The hub's library answers from a folder, and cards do not state the shape of the real weights."""
    import datasets
    import huggingface_hub
    import transformers  # noqa: F401  # it reads the hub's library when it is imported

    hub = ToyHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)

    def fetch_file(file: PublishedFile, _: Any) -> None:
        hub.fetch_file(file)

    monkeypatch.setattr(PublishedFile, "fetch", fetch_file)
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset(datasets.load_dataset))
    monkeypatch.setattr("retbench.training.hub_datasets.require_hub_set", lambda name: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    load_model_card = catalog._load_model_card
    monkeypatch.setattr(catalog, "_load_model_card", lambda file: replace(load_model_card(file), shape=None))
    catalog.load_model_cards.cache_clear()
    yield hub
    catalog.load_model_cards.cache_clear()
