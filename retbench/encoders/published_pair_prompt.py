"""The prompt of a pair as a folder of sentence-transformers has it: a chat template with a turn for query and document.

The template is a program. It is run once with marks in place of the texts, and what it writes around them is the
prompt; a template that does more with the texts is an error.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from retbench.cards.pair_prompt import PairPrompt, fill_piece
from retbench.cards.published_cross_encoder import read_answer_ids, read_chat_options, read_default_prompt
from retbench.encoders.cross_encoder import AnswerTokens
from retbench.engines.chat_template import render_chat
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import DataError, InapplicableError

MARKS = {name: f"\ue000{name}\ue000" for name in ("instruction", "query", "document")}
PROBE = {"instruction": "An instruction.", "query": " a  query?", "document": "A document\n in two lines. "}
NEXT_STEP = "use another cross-encoder, or write the prompt into a card: [pair_prompt] (docs/reranking.md)"


def read_pair_prompt(folder: Path) -> PairPrompt:
    """The prompt of a folder; its instruction is the folder's default prompt, else the template's own."""
    tokenizer, default = load_tokenizer(folder), read_default_prompt(folder)
    if not tokenizer.chat_template:
        raise InapplicableError(f"{folder} has no chat template, so its prompt is not known", NEXT_STEP)
    options = read_chat_options(folder)
    marked = _render(tokenizer, MARKS, options)
    bare = marked if default else _render(tokenizer, {**MARKS, "instruction": ""}, options)
    instruction = default or _find_between(bare, marked.partition(MARKS["instruction"]))
    template = marked if instruction and MARKS["instruction"] in marked else bare
    for name, mark in MARKS.items():
        template = template.replace(mark, f"{{{name}}}")
    if any(place not in template for place in ("{query}", "{document}")):
        raise InapplicableError(f"the chat template of {folder} does not write the query and the document", NEXT_STEP)
    prompt = PairPrompt((template,), instruction=instruction if "{instruction}" in template else None)
    _check_prompt(folder, tokenizer, prompt, options)
    return prompt


def _render(tokenizer: PreTrainedTokenizerBase, texts: dict[str, str], options: dict[str, bool]) -> str:
    turns = [{"role": role, "content": texts[name]}
             for role, name in (("system", "instruction"), ("query", "query"), ("document", "document"))
             if texts[name] or role != "system"]  # fmt: skip
    return render_chat(tokenizer, turns, **options)


def _find_between(text: str, parts: Sequence[str]) -> str | None:
    """What stands in `text` at the place of the mark; None if there is no mark, or the text around it is another."""
    before, mark, after = parts
    fits = mark and text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)
    return text[len(before) : len(text) - len(after)] if fits else None


def _check_prompt(
    folder: Path, tokenizer: PreTrainedTokenizerBase, prompt: PairPrompt, options: dict[str, bool]
) -> None:
    """Raise an error unless the prompt gives what the template gives for other texts."""
    texts = PROBE if prompt.uses_instruction else {**PROBE, "instruction": ""}
    if fill_piece(prompt.pieces[0], **texts) != _render(tokenizer, texts, options):
        raise InapplicableError(f"the chat template of {folder} changes the texts that it is given", NEXT_STEP)


def find_answer_tokens(folder: Path, prompt: PairPrompt, is_from_card: bool) -> AnswerTokens:
    """The tokens of yes and no: of the card's prompt, else of the folder's LogitScore module."""
    if not is_from_card and (ids := read_answer_ids(folder)):
        return AnswerTokens(*ids)
    tokenizer = load_tokenizer(folder)
    return AnswerTokens(
        _find_token(folder, tokenizer, prompt.yes), _find_token(folder, tokenizer, prompt.no) if prompt.no else None
    )


def _find_token(folder: Path, tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise DataError(
            f"{word!r} is {len(ids)} tokens in the tokenizer of {folder}, and an answer must be one",
            "write another `yes` or `no` into [pair_prompt] of the card",
        )
    return int(ids[0])
