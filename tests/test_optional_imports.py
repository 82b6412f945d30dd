"""Dense runs need none of the libraries that only lexical retrievers and GGUF files need."""

import subprocess
import sys

PROGRAM = """
import sys
for name in ("bm25s", "Stemmer", "gguf", "datasets", "faiss"):
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
