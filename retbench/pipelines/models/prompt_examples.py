"""The exact first query and document of a cell, as text and token ids."""

from typing import Any

from retbench.cards.method import Role
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.texts import join_fields
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer, fill_template
from retbench.pipelines.models.model import ResolvedModel


def build_prompt_examples(
    model: ResolvedModel, spec: EncoderSpec | None, task: TaskCard, collection: Collection
) -> dict[str, Any]:
    """Return what the model reads for the first query and the first document."""
    texts: dict[Role, str] = {
        "query": collection.queries[0].text.strip(),
        "document": join_fields(collection.corpus[0], task.fields),
    }
    if spec is None:
        return {role: {"text": text} for role, text in texts.items()}
    if model.local_weights is None:  # the tokenizer of a server is unknown
        return {
            role: {"text": text, "read": fill_template(spec.method, text, role, spec.instruction)}
            for role, text in texts.items()
        }
    prompt_tokenizer = model.build_prompt_tokenizer(spec)
    return {
        "query": show_tokenized_text(prompt_tokenizer, texts["query"], "query", spec.query_limit),
        "document": show_tokenized_text(prompt_tokenizer, texts["document"], "document", spec.document_limit),
    }


def show_tokenized_text(prompt_tokenizer: PromptTokenizer, text: str, role: Role, limit: int) -> dict[str, Any]:
    """Return one text, decoded from the token ids that the backbone reads."""
    tokens = prompt_tokenizer.tokenize([text], role, limit)
    ids = [int(i) for i in tokens[0]]
    return {
        "text": text,
        "read": prompt_tokenizer.tokenizer.decode(ids),
        "ids": ids,
        "truncated": bool(tokens.truncated),
    }
