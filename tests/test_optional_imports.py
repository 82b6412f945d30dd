"""Dense runs need none of the libraries that only lexical retrievers, GGUF files or one command need."""

import subprocess
import sys

PROGRAM = """
import sys
for name in ("bm25s", "Stemmer", "gguf", "datasets", "faiss", "pandas", "peft", "accelerate"):
    sys.modules[name] = None
import retbench.cli.main
import retbench.encoders.dense_encoder
import retbench.encoders.prompt_tokenizer
import retbench.engines.weights
import retbench.pipelines.evaluation.evaluate
import retbench.pipelines.finetuning.train_encoder
import retbench.retrievers.dense_retriever
"""


def test_the_dense_path_imports_without_optional_libraries() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_bm25s_prints_nothing_although_it_is_imported_late() -> None:
    program = (
        "from retbench.cards.model import LexicalSettings\n"
        "from retbench.retrievers.bm25 import BM25Index\n"
        "BM25Index(LexicalSettings(), ['tea', 'sea'])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
