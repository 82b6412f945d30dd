"""Cards of published retrievers and of tasks, compared byte for byte with mteb's registry of models and tasks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest

from retbench.cards import catalog
from retbench.cards.method import Role
from retbench.cards.model import ModelCard
from retbench.cards.task import TaskCard
from retbench.encoders.prompt_tokenizer import fill_template

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore:Prompt type .* not found in task metadata")

E2RANK = {f"e2rank-{size}{variant}" for size in ("0.6b", "4b", "8b") for variant in ("", "-embedding-only")}
NOT_IN_THE_REGISTRY = {"contriever", *E2RANK}
PYPI_REPOS = {"minilm-l6": "sentence-transformers/all-MiniLM-L6-v2"}
RETRIEVERS = [
    card
    for card in catalog.load_model_cards()
    if card.specialisation == "retriever" and card.name not in NOT_IN_THE_REGISTRY
]
# a BERT has 512 positions, and so has an XLM-RoBERTa: its table of 514 begins with two rows for padding
REGISTRY_LENGTH_ERRORS = {name: (514, 512) for name in ("e5-large-v2", "multilingual-e5-base", "multilingual-e5-large")}
TASKS = [catalog.find_task_card(name) for name in ("arguana", "msmarco-dev", "nano-nq", "bright-pony", "bright-aops")]
HUB_TASKS = [card for card in catalog.load_task_cards() if card.source.mteb]
DUPLICATES = (  # LLM2Vec's task_to_instructions.json, whose sentences for the other tasks of BEIR are mteb's
    "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the given "
    "question"
)
OUR_INSTRUCTIONS = {  # of tasks without a prompt in the registry, by the beginning of their names
    "cqadupstack": DUPLICATES,
    "miracl": mteb.get_task("MIRACLRetrieval").metadata.prompt["query"],  # the same queries, whole corpus
    "toolbench": "Given a user query, retrieve relevant tool documentation that can solve the query",
}


class RegisteredModel(NamedTuple):
    """What mteb's registry and its loader of one model say."""

    meta: Any
    settings: Mapping[str, Any]
    get_prefix: Callable[[Any, Any], str]


def read_registry(card: ModelCard) -> RegisteredModel:
    """mteb's entry, and the text that its loader puts before a query or a document of a task."""
    from mteb.models import sentence_transformer_wrapper
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.models.model_implementations import llm2vec_models, qwen3_models, repllama_models

    repo = PYPI_REPOS.get(card.name) or (card.weights.repo if card.weights else None)
    meta = mteb.get_model_meta(str(repo))
    settings: dict[str, Any] = dict(meta.loader_kwargs)
    if meta.loader is qwen3_models.q3e_instruct_loader:
        with pytest.MonkeyPatch.context() as patch:
            loaded = patch_loader(patch, qwen3_models)
            meta.loader(meta.name, meta.revision)
        settings = dict(loaded.call_args.kwargs)
    if meta.loader in (sentence_transformer_wrapper.SentenceTransformerEncoderWrapper, repllama_models.RepLLaMAModel):
        prompts = settings.get("model_prompts") or {}
        return RegisteredModel(
            meta, settings, lambda task, kind: str(prompts.get(get_prompt_name(prompts, task, kind), ""))
        )
    if card.name.startswith("llm2vec"):
        stub = llm2vec_models.LLM2VecModel.__new__(llm2vec_models.LLM2VecModel)

        def join(task: Any, kind: Any) -> str:  # the package llm2vec strips the instruction and puts a space after it
            instruction = llm2vec_models.llm2vec_instruction(stub.get_instruction(task, kind)).strip()
            return f"{instruction} " if instruction else ""

        return RegisteredModel(meta, settings, join)
    encoder = InstructSentenceTransformerModel.__new__(InstructSentenceTransformerModel)
    encoder.instruction_template, encoder.prompts_dict = settings["instruction_template"], None
    assert not settings["apply_instruction_to_passages"]
    return RegisteredModel(
        meta, settings, lambda task, kind: encoder.get_task_instruction(task, kind) if kind.value == "query" else ""
    )


def patch_loader(patch: pytest.MonkeyPatch, module: Any) -> MagicMock:
    """Stop a loader from loading weights, and note the arguments that it would load them with."""
    loaded = MagicMock()
    patch.setattr(module, "InstructSentenceTransformerModel", loaded)
    return loaded


def fill_prefix(card: ModelCard, task: TaskCard, role: Role) -> str:
    """The text that `retbench run` puts before a query or a document."""
    assert card.method
    method = catalog.find_method(card.method.default)
    prompt = fill_template(method.fit_to_task(task), "\0", role, method.choose_instruction(task))
    return prompt.partition("\0")[0]


def test_retrievers_that_are_not_compared_are_unknown_to_the_registry() -> None:
    for name in NOT_IN_THE_REGISTRY:
        weights = catalog.find_model_card(name).weights
        with pytest.raises(KeyError, match="not found"):
            mteb.get_model_meta(str(weights and weights.repo))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("card", RETRIEVERS, ids=lambda card: card.name)
def test_a_retriever_reads_the_bytes_that_mteb_gives_it(card: ModelCard, task: TaskCard) -> None:
    from mteb.types import PromptType

    registered, metadata = read_registry(card), mteb.get_task(str(task.source.mteb)).metadata
    chat_marker = fill_prefix(card, task, "document") if card.name.startswith("llm2vec") else ""
    kinds: dict[Role, Any] = {"query": PromptType.query, "document": PromptType.document}
    for role, kind in kinds.items():
        expected = registered.get_prefix(metadata, kind)
        assert fill_prefix(card, task, role) == chat_marker + expected, role


@pytest.mark.parametrize("card", RETRIEVERS, ids=lambda card: card.name)
def test_length_similarity_and_end_token_of_a_retriever_are_those_of_the_registry(card: ModelCard) -> None:
    registered = read_registry(card)
    assert card.method
    method = catalog.find_method(card.method.default)
    length, expected = card.max_length or card.context_length, int(registered.meta.max_tokens)
    assert REGISTRY_LENGTH_ERRORS.get(card.name, (expected, expected)) == (expected, length)
    assert method.similarity == registered.meta.similarity_fn_name.value
    if registered.settings.get("add_eos_token"):
        assert (method.eos, method.pooling) == (True, "last")


@pytest.mark.parametrize("card", RETRIEVERS, ids=lambda card: card.name)
def test_the_revision_of_a_retriever_is_that_of_the_registry(card: ModelCard) -> None:
    registered = read_registry(card)
    if card.weights and card.weights.revision:
        # RepLLaMA's entry names the revisions of the parent and of the adapter
        assert registered.meta.revision.rpartition("-")[2] == card.weights.revision


def test_the_embedding_parameters_of_a_card_are_those_of_the_registry() -> None:
    """`show model` computes them from the shape: the vocabulary times the width."""
    compared = 0
    for card in catalog.load_model_cards():
        if not (card.shape and card.weights and card.weights.repo):
            continue
        try:
            registered = mteb.get_model_meta(card.weights.repo).n_embedding_parameters
        except KeyError:  # not in the registry
            continue
        if registered:
            compared += 1
            assert registered == card.shape.vocabulary * card.shape.width, card.name
    assert compared > 15


def test_a_task_has_the_instruction_of_the_registry() -> None:
    without_prompt = set()
    for card in HUB_TASKS:
        prompt = mteb.get_task(str(card.source.mteb)).metadata.prompt
        if prompt is None:
            without_prompt.add(card.name)
            assert card.instruction == OUR_INSTRUCTIONS.get(card.name.partition("-")[0]), card.name
        else:
            assert card.instruction == (prompt if isinstance(prompt, str) else prompt["query"]), card.name
    assert len(HUB_TASKS) - len(without_prompt) >= 42


def test_a_task_has_the_query_templates_of_models_with_their_own_prompt_for_it() -> None:
    tables = [
        read_registry(card).settings["model_prompts"]
        for card in RETRIEVERS
        if card.method and card.method.default == "bge"
    ]
    assert tables
    assert all(table == tables[0] for table in tables)
    own_prompts = {name.removesuffix("-query"): prompt for name, prompt in tables[0].items() if name != "query"}
    for card in HUB_TASKS:
        prompt = own_prompts.get(str(card.source.mteb))
        assert (card.query_templates or {}).get("bge") == (f"{prompt}{{text}}" if prompt else None), card.name


def test_copies_of_a_collection_have_its_instruction() -> None:
    for card in catalog.load_task_cards():
        if card.suite in ("beir-archive", "specialized-beir", "msmarco-titled"):
            original = catalog.find_task_card(card.name.rpartition("-")[0])
            assert card.instruction == original.instruction, card.name


@pytest.mark.parametrize(
    "card", [card for card in catalog.load_model_cards() if card.kind == "cross-encoder"], ids=lambda card: card.name
)
def test_the_facts_of_a_cross_encoder_are_the_registrys(card: ModelCard) -> None:
    assert card.weights
    meta = mteb.get_model_meta(str(card.weights.repo))
    assert "cross-encoder" in str(meta.model_type)
    ours = (card.weights.revision, card.parameters, card.context_length, card.license, card.released)
    assert ours == (meta.revision, meta.n_parameters, meta.max_tokens, meta.license, str(meta.release_date))
