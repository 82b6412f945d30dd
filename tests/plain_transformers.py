"""A second implementation of each method from its source: one text, only transformers, no retbench code."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

WEB_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
SYSTEM_TURN = {"role": "system", "content": "You are an AI assistant that can understand human language."}


class PooledIds(NamedTuple):
    """The token ids of one text and the pooling weight of each."""

    ids: list[int]
    weights: list[float]


def pool_last(ids: list[int]) -> PooledIds:
    return PooledIds(ids, [0.0] * (len(ids) - 1) + [1.0])


def pool_first(ids: list[int]) -> PooledIds:
    return PooledIds(ids, [1.0] + [0.0] * (len(ids) - 1))


def pool_tail(ids: list[int], count: int) -> PooledIds:
    """The mean over the last tokens."""
    return PooledIds(ids, [0.0] * (len(ids) - count) + [1.0] * count)


def tokenize_bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def cut_text(tokenizer: Any, text: str, limit: int) -> str:
    return str(tokenizer.decode(tokenize_bare(tokenizer, text)[:limit]))


def tokenize_chat(tokenizer: Any, text: str, role: str, system: list[dict[str, str]]) -> PooledIds:
    noun = "query" if role == "query" else "passage"
    user = (
        f'{noun.capitalize()}: "{text}". Use one word to represent the {noun} in a retrieval task. '
        "Make sure your word is in lowercase."
    )
    turns = [*system, {"role": "user", "content": user}, {"role": "assistant", "content": 'The word is: "'}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    return pool_last(tokenize_bare(tokenizer, rendered[: rendered.rindex('The word is: "') + 14]))


def tokenize_text(tokenizer: Any, text: str, limit: int) -> list[int]:
    return list(tokenizer(text)["input_ids"])[:limit]


def tokenize_with_eos(tokenizer: Any, text: str, limit: int) -> PooledIds:
    return pool_last([*tokenize_text(tokenizer, text, limit - 1), tokenizer.eos_token_id])


def tokenize_e2rank(tokenizer: Any, text: str, role: str, limit: int) -> PooledIds:
    prompt = f"Instruct: {WEB_INSTRUCTION}\nQuery:{text}" if role == "query" else text
    return pool_last([*tokenize_text(tokenizer, prompt, limit - 1), tokenizer.pad_token_id])


def pool_weighted(ids: list[int]) -> PooledIds:
    return PooledIds(ids, [float(position) for position in range(1, len(ids) + 1)])


def tokenize_open_chat(tokenizer: Any, text: str, instruction: str, end: str) -> PooledIds:
    """A chat by its marks, with an instruction as system turn, up to the open turn of the assistant."""
    turns = (("system", instruction), ("user", text))
    chat = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return pool_last(list(tokenizer(f"{chat}<|im_start|>assistant\n{end}")["input_ids"]))


def tokenize_echo(tokenizer: Any, text: str, role: str, limit: int) -> PooledIds:
    shortened = cut_text(tokenizer, text, limit)
    introduction = f"Instruct:Retrieve passages that answer the question,\nQuery:{shortened}\nQuery again:"
    head = introduction if role == "query" else f"Document:{shortened}\nDocument again:"
    ids = [*tokenizer(head + shortened)["input_ids"], tokenizer.eos_token_id]
    return pool_tail(ids, count_tokens_of_last_characters(tokenizer, head + shortened, len(shortened)) + 1)


def tokenize_llm2vec(tokenizer: Any, text: str, role: str, limit: int, before: str = "", after: str = "") -> PooledIds:
    shortened = cut_text(tokenizer, text, limit)
    prompt = before + (f"{WEB_INSTRUCTION}: {shortened}" if role == "query" else shortened) + after
    return pool_tail(
        list(tokenizer(prompt)["input_ids"]), count_tokens_of_last_characters(tokenizer, prompt, len(shortened + after))
    )


def count_tokens_of_last_characters(tokenizer: Any, prompt: str, characters: int) -> int:
    """The number of tokens at the end that overlap the last characters."""
    spans = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return sum(end > len(prompt) - characters for _, end in spans)


# (tokenizer, text, role, limit) -> token ids with pooling weights
METHODS: dict[str, Callable[[Any, str, str, int], PooledIds]] = {
    "last": lambda t, text, role, limit: pool_last(tokenize_text(t, text, limit)),
    "mean": lambda t, text, role, limit: pool_tail(ids := tokenize_text(t, text, limit), len(ids)),
    "contriever": lambda t, text, role, limit: pool_tail(ids := tokenize_text(t, text, limit), len(ids)),
    "first": lambda t, text, role, limit: pool_first(tokenize_text(t, text, limit)),
    "weighted": lambda t, text, role, limit: pool_weighted(tokenize_text(t, text, limit)),
    "eos": lambda t, text, role, limit: tokenize_with_eos(t, text, limit),
    "promptreps": lambda t, text, role, limit: tokenize_chat(t, cut_text(t, text, limit), role, [SYSTEM_TURN]),
    "promptreps-study": lambda t, text, role, limit: tokenize_chat(t, cut_text(t, text, limit), role, []),
    "prompteol": lambda t, text, role, limit: pool_last(
        list(t(f'This sentence : "{cut_text(t, text, limit)}" means in one word:"')["input_ids"])
    ),
    "echo": tokenize_echo,
    "llm2vec": tokenize_llm2vec,
    "llm2vec-llama3-instruct": lambda t, text, role, limit: tokenize_llm2vec(
        t, text, role, limit, "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"
    ),
    "llm2vec-mistral-instruct": lambda t, text, role, limit: tokenize_llm2vec(
        t, text, role, limit, "[INST] ", " [/INST]"
    ),
    "bge": lambda t, text, role, limit: pool_first(
        tokenize_text(
            t, f"Represent this sentence for searching relevant passages: {text}" if role == "query" else text, limit
        )
    ),
    "repllama": lambda t, text, role, limit: tokenize_with_eos(
        t, f"{'query' if role == 'query' else 'passage'}:  {text}", limit
    ),
    "e5": lambda t, text, role, limit: pool_tail(
        ids := tokenize_text(t, f"{'query' if role == 'query' else 'passage'}: {text}", limit), len(ids)
    ),
    "e5-mistral": lambda t, text, role, limit: tokenize_with_eos(
        t, f"Instruct: {WEB_INSTRUCTION}\nQuery: {text}" if role == "query" else text, limit
    ),
    "e2rank": tokenize_e2rank,
    "e2rank-reranking": lambda t, text, role, limit: tokenize_e2rank(
        t, text if role == "query" else " ".join(text.split()[:1024]), role, limit
    ),
    "qwen3-embedding": lambda t, text, role, limit: pool_last(
        tokenize_text(t, f"Instruct: {WEB_INSTRUCTION}\nQuery:{text}" if role == "query" else text, limit)
    ),
    "promptreps-image": lambda t, text, role, limit: tokenize_chat(t, cut_text(t, text, limit), role, [SYSTEM_TURN]),
    "gme-qwen2-vl": lambda t, text, role, limit: tokenize_open_chat(
        t, cut_text(t, text, limit), "You are a helpful assistant.", "<|endoftext|>"
    ),
    "qwen3-vl-embedding": lambda t, text, role, limit: tokenize_open_chat(
        t,
        cut_text(t, text, limit),
        "Retrieve images or text relevant to the user's query." if role == "query" else "Represent the user's input.",
        "",
    ),
    "gte-qwen2": lambda t, text, role, limit: tokenize_with_eos(
        t, f"Instruct: {WEB_INSTRUCTION}\nQuery: {text}" if role == "query" else text, limit
    ),
}
BIDIRECTIONAL = ("llm2vec", "llm2vec-llama3-instruct", "llm2vec-mistral-instruct", "gte-qwen2")


@functools.lru_cache(maxsize=2)  # both directions of one model
def load_model(folder: Path, bidirectional: bool) -> Any:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder)
    if bidirectional:
        config.is_causal = False
    return AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager").eval()


def compute_vector(folder: Path, pooled_ids: PooledIds, bidirectional: bool, layer: int = -1) -> np.ndarray:
    """The vector of one text, computed by transformers."""
    with torch.no_grad():
        output = load_model(folder, bidirectional)(torch.tensor([pooled_ids.ids]), output_hidden_states=True)
    states = output.hidden_states[layer][0]
    pooled = (states * torch.tensor(pooled_ids.weights)[:, None]).sum(0)
    return np.asarray((pooled / pooled.norm()).numpy())
