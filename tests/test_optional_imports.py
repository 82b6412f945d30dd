"""Dense runs need none of the libraries that only lexical retrievers and GGUF files need."""

import subprocess
import sys

LINES = """
import sys
for name in ("bm25s", "Stemmer", "gguf", "datasets", "faiss"):
    sys.modules[name] = None
import retbench.cli.main
import retbench.encoders.dense
import retbench.encoders.prompt_tokenizer
import retbench.engines.weights
import retbench.pipelines.evaluate
import retbench.pipelines.finetune
import retbench.retrievers.dense
"""


def test_the_dense_path_is_imported_without_them() -> None:
    subprocess.run([sys.executable, "-c", LINES], check=True)
