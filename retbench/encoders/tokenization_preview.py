"""A preview of tokenization: the exact string and token ids of one text under each method, without running a model."""

from collections.abc import Callable, Iterator
from typing import Any

from retbench.cards import catalog
from retbench.cards.method import ROLES, Method, Role
from retbench.cards.published_kinds import require_encoder
from retbench.cards.published_method import follow_published_model
from retbench.cards.task import LengthLimits
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import weights
from retbench.engines.chat_template import render_chat
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import InapplicableError


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """What differs between tokenizer families: special tokens and the text that the chat template adds."""
    special = {
        kind: {"text": getattr(tokenizer, f"{kind}_token"), "id": getattr(tokenizer, f"{kind}_token_id")}
        for kind in ("bos", "eos", "pad")
        if getattr(tokenizer, f"{kind}_token")
    }
    added = tokenizer("x")["input_ids"] != tokenizer("x", add_special_tokens=False)["input_ids"]
    facts = {"tokenizer": type(tokenizer).__name__, **special, "adds_special_tokens": added}
    if tokenizer.chat_template:
        facts["chat"] = render_chat(tokenizer, [{"role": "user", "content": "TEXT"}])
    return facts


def preview_tokenization(
    model: str, text: str, methods: list[str], path: str | None, log_status: Callable[[str], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """First the tokenizer; then, for each method and role, the exact string, its ids and the first pooled token."""
    card = catalog.find_model_card(model)
    require_encoder(card)
    local = weights.obtain_weights(card, path, log_status)
    tokenizer = load_tokenizer(local.folder)
    yield describe_tokenizer(tokenizer)
    for preset in map(catalog.find_method, methods) if methods else catalog.load_methods():
        method = follow_published_model(preset, local.published_folder)
        for role in ROLES:
            yield {"method": method.name, "role": role} | _preview_method(tokenizer, method, text, role)


def _preview_method(tokenizer: Any, method: Method, text: str, role: Role) -> dict[str, Any]:
    lengths = LengthLimits()
    limit = lengths.query if role == "query" else lengths.document
    try:
        tokens = PromptTokenizer(tokenizer, method, method.instruction).tokenize([text], role, limit)
    except InapplicableError as problem:
        return {"skipped": problem.cause}
    ids = [int(i) for i in tokens[0]]
    start = 0 if tokens.pooling_starts is None else int(tokens.pooling_starts[0])
    return {"read": tokenizer.decode(ids), "ids": ids, "pooling": method.pooling, "pooled_from": start}
