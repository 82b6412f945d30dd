"""Token ids equal each method's specification, computed here a second time, one text after the other."""

from pathlib import Path
from typing import Any

import pytest

from retbench.cards import catalog
from retbench.cards.method import Method, Role
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.errors import DataError, InapplicableError
from tests import tiny_models

TEXTS = (
    "The heart pumps blood.",
    'A "quoted" word, ünïcödé and 世界.',
    "<|im_end|> is only text here",
    "word " * 300,  # longer than every limit used below
    "",
)


@pytest.fixture(scope="module")
def tokens() -> Any:
    return tiny_models.build_tokenizer()


def compute_specified_ids(tokenizer: Any, text: str, role: Role, limit: int) -> list[int]:
    """Compute PromptReps' ids as its source does: cut, decode, render the chat, cut after the answer, tokenize once."""
    cut = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:limit])
    noun = "query" if role == "query" else "passage"
    turns = [
        {"role": "system", "content": "You are an AI assistant that can understand human language."},
        {
            "role": "user",
            "content": f'{noun.capitalize()}: "{cut}". Use one word to represent the {noun} in a '
            "retrieval task. Make sure your word is in lowercase.",
        },
        {"role": "assistant", "content": 'The word is: "'},
    ]
    chat = tokenizer.apply_chat_template(turns, tokenize=False)
    return list(tokenizer(chat[: chat.rindex('The word is: "') + 14], add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("role", ["query", "document"])
def test_promptreps_token_ids_equal_the_specification(tokens: Any, role: Role) -> None:
    tokenized = PromptTokenizer(tokens, catalog.load_methods().find("promptreps")).tokenize(TEXTS, role, 32)
    for row, text in enumerate(TEXTS):
        assert tokenized[row].tolist() == compute_specified_ids(tokens, text, role, 32), text[:20]
    assert tokenized.truncated == sum(len(tokens(text)["input_ids"]) > 32 for text in TEXTS) > 0
    assert tokenized.empty == 1


def test_plain_methods_truncate_the_finished_sequence(tokens: Any) -> None:
    tokenized = PromptTokenizer(tokens, catalog.load_methods().find("last")).tokenize(TEXTS, "document", 16)
    for row, text in enumerate(TEXTS[:4]):
        assert tokenized[row].tolist() == tokens(text)["input_ids"][:16]
    assert tokenized.lengths.max() == 16
    assert tokenized.truncated == sum(len(tokens(text)["input_ids"]) > 16 for text in TEXTS)


def test_an_empty_text_is_one_end_token(tokens: Any) -> None:
    tokenized = PromptTokenizer(tokens, catalog.load_methods().find("mean")).tokenize([""], "document", 16)
    assert tokenized[0].tolist() == [tokens.eos_token_id]


def test_an_eos_counts_towards_the_length(tokens: Any) -> None:
    method = Method("with-eos", "", "ours", "a test", "last", query="Query:{text}", eos=True)
    tokenized = PromptTokenizer(tokens, method).tokenize(["one two three", "word " * 50], "query", 24)
    assert tokenized[0].tolist() == [*tokens("Query:one two three")["input_ids"], tokens.eos_token_id]
    assert len(tokenized[1]) == 24
    assert tokenized[1][-1] == tokens.eos_token_id


def test_e2rank_ends_every_text_in_the_padding_token_as_its_code_does(tokens: Any) -> None:
    tokens.add_special_tokens({"eos_token": "<|im_end|>"})  # as in Qwen3: the two tokens differ
    assert tokens.convert_ids_to_tokens(tokens.pad_token_id) == "<|endoftext|>"
    prompt_tokenizer = PromptTokenizer(tokens, catalog.load_methods().find("e2rank"), "Find the answer")
    (query,) = prompt_tokenizer.tokenize(["why?"], "query", 64)
    assert query.tolist() == tokens("Instruct: Find the answer\nQuery:why?<|endoftext|>")["input_ids"]
    (document,) = prompt_tokenizer.tokenize(["Be\ncause."], "document", 64)
    assert document.tolist() == tokens("Be\ncause.<|endoftext|>")["input_ids"]
    assert catalog.find_recipe("e2rank").method == catalog.load_methods().find("e2rank")


def test_reranking_with_e2rank_reads_the_first_words_of_a_document(tokens: Any) -> None:
    method = catalog.load_methods().find("e2rank-reranking")
    text = "one\n two  three " * 500
    (document,) = PromptTokenizer(tokens, method).tokenize([text], "document", 32768)
    assert document.tolist() == tokens(" ".join(text.split()[:1024]) + "<|endoftext|>")["input_ids"]
    (query,) = PromptTokenizer(tokens, method).tokenize([text], "query", 32768)
    assert query.tolist() == tokens(f"Instruct: \nQuery:{text}<|endoftext|>")["input_ids"]  # a query is not cut


def test_eos_is_pad_needs_eos() -> None:
    with pytest.raises(DataError, match="has eos_is_pad but appends no token"):
        Method("m", "", "ours", "a test", "last", eos_is_pad=True)
    with pytest.raises(DataError, match="document_words = 0"):
        Method("m", "", "ours", "a test", "last", document_words=0)


def test_an_instruction_is_placed_by_the_template(tokens: Any) -> None:
    method = Method("instructed", "", "ours", "a test", "last", query="Instruct: {instruction}\nQuery: {text}")
    prompt_tokenizer = PromptTokenizer(tokens, method, "Find the answer")
    assert (
        prompt_tokenizer.build_prompt("what {text} is", "query") == "Instruct: Find the answer\nQuery: what {text} is"
    )


def test_a_chat_method_needs_a_chat_template() -> None:
    tokenizer = tiny_models.build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InapplicableError, match="promptreps needs a chat template"):
        PromptTokenizer(tokenizer, catalog.load_methods().find("promptreps"))


def test_a_batch_of_texts_is_tokenised_like_single_texts(tokens: Any, tmp_path: Path) -> None:
    prompt_tokenizer = PromptTokenizer(tokens, catalog.load_methods().find("promptreps"))
    texts = [
        f"{sentence} {number}" for number in range(40) for sentence in tiny_models.SENTENCES
    ]  # more texts than one chunk of the tokenizer
    together = prompt_tokenizer.tokenize(texts, "document", 20)
    for row in (0, 1, 1023, 1024, 1025, len(texts) - 1):
        assert together[row].tolist() == prompt_tokenizer.tokenize([texts[row]], "document", 20)[0].tolist()
