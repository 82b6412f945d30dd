"""The exact first query and document of a cell, as text and token ids."""

from collections.abc import Iterable
from typing import Any

from retbench.cards.method import Role
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.images import TextsWithImages
from retbench.corpora.texts import Texts, read_inputs
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer, fill_template
from retbench.encoders.vision_tokenizer import VisionTokenizer
from retbench.pipelines.models.model import ResolvedModel


def build_prompt_examples(
    model: ResolvedModel, spec: EncoderSpec | None, task: TaskCard, collection: Collection
) -> dict[str, Any]:
    """Return what the model reads for the first query and the first document."""
    rows: dict[Role, Texts] = {"query": collection.queries.take([0]), "document": collection.corpus.take([0])}
    inputs: dict[Role, Iterable[str]] = {
        "query": read_inputs(rows["query"], ("text",)),
        "document": read_inputs(rows["document"], task.fields),
    }
    if spec is None or model.local_weights is None:
        texts = {role: next(iter(of_role)) for role, of_role in inputs.items()}
        if spec is None:
            return {role: {"text": text} for role, text in texts.items()}
        return {  # the tokenizer of a server is unknown
            role: {"text": text, "read": fill_template(spec.method, text, role, spec.instruction)}
            for role, text in texts.items()
        }
    tokenizer = model.build_prompt_tokenizer(spec)
    return {
        role: show_tokenized_row(tokenizer, of_role, role, spec.get_limit(role)) for role, of_role in inputs.items()
    }


def show_tokenized_row(
    tokenizer: PromptTokenizer | VisionTokenizer, inputs: Iterable[str], role: Role, limit: int
) -> dict[str, Any]:
    """Return one row: its text, its image, and what the backbone reads, decoded from token ids."""
    images = inputs.images if isinstance(inputs, TextsWithImages) else None
    [text] = inputs
    row = TextsWithImages([text], images) if images else [text]
    tokens = tokenizer.tokenize(row, role, limit)
    ids = [int(i) for i in tokens[0]]
    size = images.read_sizes()[0] if images else None
    shown = {"text": text, "read": tokenizer.tokenizer.decode(ids), "ids": ids, "truncated": bool(tokens.truncated)}
    if size is None or not isinstance(tokenizer, VisionTokenizer):
        return shown
    return {**shown, "read": tokenizer.show_tokens(ids), "image": f"{size.width} x {size.height} pixels"}
