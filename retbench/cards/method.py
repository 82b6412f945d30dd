"""The method: how a backbone turns a text into one vector. A preset is a TOML file in `methods/`.

The bytes of the templates are the method; a letter more or less is another method and misses the cache.
"""

from dataclasses import dataclass
from typing import Literal

from retbench.errors import DataError

MethodKind = Literal["dense", "sparse", "hybrid"]
Pooling = Literal["last", "first", "mean", "weighted", "model"]
Span = Literal["all", "text"]
Attention = Literal["own", "bidirectional"]
PostProcessing = Literal["none", "centre", "whiten", "drop-top"]
Role = Literal["query", "document"]

DESCRIPTIVE_FIELDS = ("title", "source", "paper", "fidelity")  # said about a method, not part of it


@dataclass(frozen=True)
class Method:
    """A named preset.

    `query` and `document` hold `{text}` (and may hold `{instruction}`: the task's, else the method's own). With `chat`
    they are the user's turn, after `system` where there is one; the assistant's turn is `answer`, and the rendered
    string is cut directly after it.
    `cut = "text"` limits the text before it enters the template, `cut = "tokens"` the finished sequence.
    `special_tokens` means those the tokenizer adds by itself; `eos` appends the tokenizer's end-of-sequence token.
    `span = "text"` pools from where the last `{text}` begins to the end, `span = "all"` the whole sequence.
    `layer` is the block whose output is pooled, as transformers counts hidden states: 0 the embeddings, -1 the last.
    `post` changes finished vectors by what the corpus' vectors have in common (its mean, its main directions), and
    `components` says how many directions `whiten` keeps or `drop-top` removes; no text is embedded again for it.
    A `sparse` method weighs the words of the text by the logits behind the last state, a `hybrid` one adds its ranking
    to the dense one.
    """

    name: str
    title: str
    fidelity: Literal["exact", "reconstructed", "ours"]
    source: str
    pooling: Pooling
    paper: str | None = None
    kind: MethodKind = "dense"
    query: str = "{text}"
    document: str = "{text}"
    instruction: str = ""
    chat: bool = False
    system: str | None = None
    answer: str = ""
    cut: Literal["text", "tokens"] = "tokens"
    special_tokens: bool = True
    eos: bool = False
    span: Span = "all"
    attention: Attention = "own"
    layer: int | None = None
    post: PostProcessing = "none"
    components: int | None = None

    def __post_init__(self) -> None:
        if self.span == "text" and self.chat:
            raise DataError(f"method {self.name} pools a text inside a chat", 'use span = "all", or no chat')
        if self.kind != "dense" and (self.pooling != "last" or self.layer is not None):
            raise DataError(f"method {self.name} has no logits: they follow the last state", 'use pooling = "last"')
        if self.kind != "dense" and self.post != "none":
            raise DataError(f"method {self.name} changes vectors after the fact, but ranks by terms", "use a dense one")
        if self.components is not None and (self.components < 1 or self.post not in ("whiten", "drop-top")):
            raise DataError(f"method {self.name}: {self.components} components", "1 or more, to whiten or drop-top")

    def get_template(self, role: Role) -> str:
        """The text around a query or around a document."""
        return self.query if role == "query" else self.document
