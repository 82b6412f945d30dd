"""What each method's source says, written down a second time: one text, transformers alone, no code of ours."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

WEB = "Given a web search query, retrieve relevant passages that answer the query"
SYSTEM = {"role": "system", "content": "You are an AI assistant that can understand human language."}


class Read(NamedTuple):
    """The ids of one text, and which of them are pooled, with what weight."""

    ids: list[int]
    weights: list[float]


def last(ids: list[int]) -> Read:
    return Read(ids, [0.0] * (len(ids) - 1) + [1.0])


def first(ids: list[int]) -> Read:
    return Read(ids, [1.0] + [0.0] * (len(ids) - 1))


def tail(ids: list[int], count: int) -> Read:
    """The mean over the last tokens."""
    return Read(ids, [0.0] * (len(ids) - count) + [1.0] * count)


def bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def cut(tokenizer: Any, text: str, limit: int) -> str:
    return str(tokenizer.decode(bare(tokenizer, text)[:limit]))


def chat(tokenizer: Any, text: str, role: str, system: list[dict[str, str]]) -> Read:
    noun = "query" if role == "query" else "passage"
    user = (
        f'{noun.capitalize()}: "{text}". Use one word to represent the {noun} in a retrieval task. '
        "Make sure your word is in lowercase."
    )
    turns = [*system, {"role": "user", "content": user}, {"role": "assistant", "content": 'The word is: "'}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    return last(bare(tokenizer, rendered[: rendered.rindex('The word is: "') + 14]))


def whole(tokenizer: Any, text: str, limit: int) -> list[int]:
    return list(tokenizer(text)["input_ids"])[:limit]


def ended(tokenizer: Any, text: str, limit: int) -> Read:
    return last([*whole(tokenizer, text, limit - 1), tokenizer.eos_token_id])


def weighted(ids: list[int]) -> Read:
    return Read(ids, [float(place) for place in range(1, len(ids) + 1)])


def echo(tokenizer: Any, text: str, role: str, limit: int) -> Read:
    own = cut(tokenizer, text, limit)
    first = f"Instruct:Retrieve passages that answer the question,\nQuery:{own}\nQuery again:"
    head = first if role == "query" else f"Document:{own}\nDocument again:"
    ids = [*tokenizer(head + own)["input_ids"], tokenizer.eos_token_id]
    return tail(ids, last_characters(tokenizer, head + own, len(own)) + 1)


def llm2vec(tokenizer: Any, text: str, role: str, limit: int, before: str = "", after: str = "") -> Read:
    own = cut(tokenizer, text, limit)
    prompt = before + (f"{WEB}: {own}" if role == "query" else own) + after
    return tail(list(tokenizer(prompt)["input_ids"]), last_characters(tokenizer, prompt, len(own + after)))


def last_characters(tokenizer: Any, prompt: str, characters: int) -> int:
    """How many tokens at the end reach into the last characters."""
    spans = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return sum(end > len(prompt) - characters for _, end in spans)


# (tokenizer, text, role, limit) -> what is read
METHODS: dict[str, Callable[[Any, str, str, int], Read]] = {
    "last": lambda t, text, role, limit: last(whole(t, text, limit)),
    "mean": lambda t, text, role, limit: tail(ids := whole(t, text, limit), len(ids)),
    "first": lambda t, text, role, limit: first(whole(t, text, limit)),
    "weighted": lambda t, text, role, limit: weighted(whole(t, text, limit)),
    "eos": lambda t, text, role, limit: ended(t, text, limit),
    "promptreps": lambda t, text, role, limit: chat(t, cut(t, text, limit), role, [SYSTEM]),
    "promptreps-study": lambda t, text, role, limit: chat(t, cut(t, text, limit), role, []),
    "prompteol": lambda t, text, role, limit: last(
        list(t(f'This sentence : "{cut(t, text, limit)}" means in one word:"')["input_ids"])
    ),
    "echo": echo,
    "llm2vec": llm2vec,
    "llm2vec-llama3-instruct": lambda t, text, role, limit: llm2vec(
        t, text, role, limit, "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"
    ),
    "llm2vec-mistral-instruct": lambda t, text, role, limit: llm2vec(t, text, role, limit, "[INST] ", " [/INST]"),
    "bge": lambda t, text, role, limit: first(
        whole(t, f"Represent this sentence for searching relevant passages: {text}" if role == "query" else text, limit)
    ),
    "repllama": lambda t, text, role, limit: ended(t, f"{'query' if role == 'query' else 'passage'}:  {text}", limit),
    "e5": lambda t, text, role, limit: tail(
        ids := whole(t, f"{'query' if role == 'query' else 'passage'}: {text}", limit), len(ids)
    ),
    "e5-mistral": lambda t, text, role, limit: ended(
        t, f"Instruct: {WEB}\nQuery: {text}" if role == "query" else text, limit
    ),
    "qwen3-embedding": lambda t, text, role, limit: last(
        whole(t, f"Instruct: {WEB}\nQuery:{text}" if role == "query" else text, limit)
    ),
    "gte-qwen2": lambda t, text, role, limit: ended(
        t, f"Instruct: {WEB}\nQuery:{text}" if role == "query" else text, limit
    ),
}
BIDIRECTIONAL = ("llm2vec", "llm2vec-llama3-instruct", "llm2vec-mistral-instruct", "gte-qwen2")


@functools.lru_cache(maxsize=2)  # both directions of one model
def whole_model(folder: Path, bidirectional: bool) -> Any:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder)
    if bidirectional:
        config.is_causal = False
    return AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager").eval()


def vector(folder: Path, read: Read, bidirectional: bool, layer: int = -1) -> np.ndarray:
    """One text alone through transformers."""
    with torch.no_grad():
        found = whole_model(folder, bidirectional)(torch.tensor([read.ids]), output_hidden_states=True)
    states = found.hidden_states[layer][0]
    pooled = (states * torch.tensor(read.weights)[:, None]).sum(0)
    return np.asarray((pooled / pooled.norm()).numpy())
