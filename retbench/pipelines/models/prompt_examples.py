"""The exact first query and document of a cell, as text and token ids: prompts in plain sight."""

from typing import Any

from retbench.cards.method import Role
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.texts import join_fields
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer, fill_template
from retbench.pipelines.models.model import ResolvedModel


def example(
    candidate: ResolvedModel, spec: EncoderSpec | None, task: TaskCard, collection: Collection
) -> dict[str, Any]:
    """What the model reads for the first query and the first document."""
    texts: dict[Role, str] = {
        "query": collection.queries[0].text.strip(),
        "document": join_fields(collection.corpus[0], task.fields),
    }
    if spec is None:
        return {role: {"text": text} for role, text in texts.items()}
    if candidate.local is None:  # a server keeps its tokenizer to itself
        return {
            role: {"text": text, "read": fill_template(spec.method, text, role, spec.instruction)}
            for role, text in texts.items()
        }
    wording = candidate.wording(spec)
    return {
        "query": read(wording, texts["query"], "query", spec.query_limit),
        "document": read(wording, texts["document"], "document", spec.document_limit),
    }


def read(wording: PromptTokenizer, text: str, role: Role, limit: int) -> dict[str, Any]:
    """One text as it reaches the backbone."""
    tokens = wording.tokenize([text], role, limit)
    ids = [int(i) for i in tokens[0]]
    return {"text": text, "read": wording.tokenizer.decode(ids), "ids": ids, "truncated": bool(tokens.truncated)}
