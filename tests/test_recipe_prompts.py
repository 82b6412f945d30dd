"""The prompts of training recipes against the formatters of the authors' code."""

import pytest

from retbench.cards import catalog
from retbench.cards.method import Role
from retbench.corpora.rows import TextRow
from retbench.corpora.texts import join_fields
from retbench.encoders.prompt_tokenizer import PromptTokenizer, fill_template
from tests import tiny_models


def format_as_tevatron(prefix: str, title: str, text: str) -> str:
    return f"{prefix}{title.strip()} {text.strip()}".strip()


@pytest.mark.parametrize("name", ["specialized-llms", "repllama"])
def test_the_tevatron_recipes_say_where_they_differ(name: str) -> None:
    """Documents with a title are equal; without one a space is missing, so these recipes are not exact."""
    recipe = catalog.find_recipe(name)

    def fill(title: str) -> str:
        text = join_fields(TextRow("d", title, "A text. "), ("title", "text"))
        return fill_template(recipe.method, text, "document", "")

    prefix = recipe.method.document.removesuffix("{text}")
    assert fill("Title") == format_as_tevatron(prefix, "Title", "A text. ")
    assert fill("") != format_as_tevatron(prefix, "", "A text. ")
    assert (recipe.fidelity, recipe.method.fidelity) == ("reconstructed", "reconstructed")
    assert "without title" in recipe.method.source


def format_llm_ql_query(query: str) -> str:
    prefix = "Instruct: Given a web search query, retrieve the most relevant passage that answer the query.\nQuery: "
    return f"{prefix} {query.strip()}\nThe most relevant passage: ".strip()


def format_llm_ql_passage(title: str, text: str) -> str:
    prefix = "Instruct: Given a retrieved passage, summarize the passage.\nPassage: "
    return f"{prefix} {title.strip()} {text.strip()}\nSummarization: ".strip()


def test_llm_ql_reads_the_prompts_of_its_second_stage() -> None:
    """The authors' contrastive stage: a space after the prefix, and the whole prompt cut before the last token."""
    recipe = catalog.find_recipe("llm-ql")
    method = recipe.method
    assert fill_template(method, "what is a cell", "query", "") == format_llm_ql_query("what is a cell")
    titled = join_fields(TextRow("d", "Cell", "A cell is a room."), ("title", "text"))
    assert fill_template(method, titled, "document", "") == format_llm_ql_passage("Cell", "A cell is a room.")
    tokenizer = tiny_models.build_tokenizer()
    long_text = "a cell is a small room " * 100
    tokens = PromptTokenizer(tokenizer, method).tokenize([long_text], "document", recipe.lengths.document)
    expected = tokenizer(format_llm_ql_passage("", long_text).replace("   ", "  "))["input_ids"][:199]
    assert tokens[0].tolist() == [*expected, tokenizer.eos_token_id]


QWEN_VL_TEMPLATE = (  # the part for texts, from Qwen/Qwen2.5-VL-7B-Instruct
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize(("role", "prefix"), [("query", "Query:"), ("document", "Passage:")])
def test_qwen_vl_reads_a_user_turn(role: Role, prefix: str) -> None:
    """The study's collator for its VL model: the chat template of one user turn, then an end-of-text token."""
    tokenizer = tiny_models.build_tokenizer()
    tokenizer.chat_template = QWEN_VL_TEMPLATE
    turn = [{"role": "user", "content": f"{prefix}what is a cell"}]
    expected = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=False) + "<|endoftext|>"
    recipe = catalog.find_recipe("specialized-llms-vl")
    assert PromptTokenizer(tokenizer, recipe.method).build_prompt("what is a cell", role) == expected
    lengths = {"query": (recipe.lengths.query, 32), "document": (recipe.lengths.document, 156)}
    tokens_of_prefix = {"query": len(["Query", ":"]), "document": len(["Pass", "age", ":"])}  # in Qwen's vocabulary
    assert lengths[role][0] + tokens_of_prefix[role] == lengths[role][1]
