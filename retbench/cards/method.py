"""The method: how a backbone turns a text into a vector, into one vector per token, or into term weights.

A preset is a TOML file in `methods/`.

The exact bytes of a template are part of the embedding key: one changed character misses the cache.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from retbench.cards.published_vectors import LateInteraction, LearnedSparse
from retbench.cards.task import TaskCard
from retbench.errors import DataError

MethodKind = Literal["dense", "sparse", "hybrid", "multi-vector"]
VectorKind = Literal["dense", "sparse", "multi-vector"]
VECTOR_KINDS: tuple[VectorKind, ...] = get_args(VectorKind)
Pooling = Literal["last", "first", "mean", "weighted", "model"]
Span = Literal["all", "text"]
Attention = Literal["own", "bidirectional"]
PostProcessing = Literal["none", "centre", "whiten", "drop-top"]
Similarity = Literal["cosine", "dot"]
ImagePositions = Literal["grid", "sequential"]
Role = Literal["query", "document"]
ROLES: tuple[Role, ...] = ("query", "document")

DESCRIPTIVE_FIELDS = ("title", "source", "paper", "fidelity")  # they describe a method and do not change a vector


@dataclass(frozen=True)
class Method:
    """A named preset.

    `query` and `document` are prompt templates with `{text}` and optionally `{instruction}` (the task's, else the
    method's). With `chat` the template is the user turn, after an optional `system` turn; `answer` is the assistant
    turn, and the rendered prompt ends directly after it.
    `cut = "text"` truncates the text before it enters the template, `cut = "tokens"` truncates the whole sequence.
    `special_tokens` are those the tokenizer adds by default; `eos` appends the tokenizer's end-of-sequence token, or
    with `eos_is_pad` its padding token. `document_words` cuts a document to its first words, joined by spaces.
    `image_query` and `image_document` are the templates of rows with an image; without them the row's usual template is
    used. `{text}` is there the image, followed by the row's text. `image_positions` is how a decoder numbers the tokens
    of an image: by row and column (`grid`), as it was trained, or one after the other (`sequential`).
    `span = "text"` pools from the start of the last `{text}` to the end, `span = "all"` pools the whole sequence.
    `layer` is the hidden state that is pooled, numbered as in transformers: 0 is the embeddings, -1 the last.
    `post` transforms finished vectors with statistics of the corpus vectors (mean, principal directions), and
    `components` is the number of directions that `whiten` keeps or `drop-top` removes; no text is encoded again.
    `similarity = "dot"` compares vectors as the model makes them; with `cosine` they are stored with length one.
    A `sparse` method with last pooling weights the words of the text by the logits of the last state (PromptReps); a
    `hybrid` method fuses that ranking with the dense one. A `sparse` method with `learned_sparse` is SPLADE, a
    `multi-vector` method with `late_interaction` is ColBERT; both use the modules of the model's folder.
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
    eos_is_pad: bool = False
    document_words: int | None = None
    span: Span = "all"
    attention: Attention = "own"
    layer: int | None = None
    post: PostProcessing = "none"
    components: int | None = None
    similarity: Similarity = "cosine"
    image_query: str | None = None
    image_document: str | None = None
    image_positions: ImagePositions = "grid"
    late_interaction: LateInteraction | None = None
    learned_sparse: LearnedSparse | None = None

    def __post_init__(self) -> None:
        if self.span == "text" and self.chat:
            raise DataError(f"method {self.name} pools a text span inside a chat", 'use span = "all", or no chat')
        if self.vector_kind != "dense" or self.learned_sparse or self.late_interaction:
            self._check_published_kind()
        elif self.kind != "dense" and (self.pooling != "last" or self.layer is not None):
            raise DataError(
                f"method {self.name} is {self.kind}: it needs the last state", 'use pooling = "last" and no layer'
            )
        if self.kind != "dense" and self.post != "none":
            raise DataError(
                f"method {self.name} is {self.kind}: it takes no `post`", "use a dense method, or no `post`"
            )
        if self.similarity == "dot" and (self.kind != self.vector_kind or self.post != "none"):
            raise DataError(
                f"method {self.name} compares by dot product, but a {self.kind} method with post = {self.post} "
                "compares vectors of length one",
                "use a dense method without `post`, or leave `similarity` out",
            )
        if self.eos_is_pad and not self.eos:
            raise DataError(f"method {self.name} has eos_is_pad but appends no token", "write eos = true too")
        if self.document_words is not None and self.document_words < 1:
            raise DataError(f"method {self.name}: document_words = {self.document_words}", "give 1 or more")
        if self.components is not None and (self.components < 1 or self.post not in ("whiten", "drop-top")):
            raise DataError(
                f"method {self.name}: components = {self.components}", "give 1 or more, with whiten or drop-top"
            )

    def _check_published_kind(self) -> None:
        """Refuse settings that contradict each other in a method of a published folder."""
        expected = {"multi-vector": self.late_interaction, "sparse": self.learned_sparse}.get(self.kind)
        if expected is None or (self.late_interaction and self.learned_sparse):
            raise DataError(
                f"method {self.name} is {self.kind}, but its settings are those of another kind",
                "use kind = multi-vector with [late_interaction], or kind = sparse with [learned_sparse]",
            )
        if self.pooling != "model" or self.chat or self.span != "all" or self.layer is not None:
            raise DataError(
                f"method {self.name} is {self.kind}: it uses the modules of the model's folder",
                'use pooling = "model", and no chat, span or layer',
            )

    @property
    def vector_kind(self) -> VectorKind:
        """What is stored of a text: a vector, weighted terms (SPLADE), or a vector per token (ColBERT).

        PromptReps' terms are stored in one row with the dense vector of the same forward pass.
        """
        if self.kind == "multi-vector":
            return "multi-vector"
        return "sparse" if self.learned_sparse else "dense"

    def get_template(self, role: Role) -> str:
        """Return the prompt template of queries or of documents."""
        return self.query if role == "query" else self.document

    @property
    def uses_instruction(self) -> bool:
        """Whether a prompt template asks for an instruction."""
        return any("{instruction}" in template for template in (self.query, self.document))

    def choose_instruction(self, task: TaskCard | None) -> str:
        """Return the task's instruction, else the method's own; empty if no template asks for one."""
        if not self.uses_instruction:
            return ""  # an instruction that no template uses changes no vector and must not change a key
        return (task.instruction if task else None) or self.instruction

    def fit_to_task(self, task: TaskCard) -> "Method":
        """Return the method with the prompt templates that the task's card has for it, if it has any."""
        query = (task.query_templates or {}).get(self.name, self.query)
        return replace(self, query=query, document=(task.document_templates or {}).get(self.name, self.document))
