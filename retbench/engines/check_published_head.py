"""Checks what follows the transformer in a sentence-transformers folder, without loading it and without torch.

A head that an engine cannot compute exactly is refused by name. The engine sentence-transformers runs more modules.
"""

from pathlib import Path

from retbench.cards.published_method import POOLINGS
from retbench.cards.published_modules import PublishedModule, read_modules
from retbench.errors import DataError

OWN_MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
THEIR_MODULES = (*OWN_MODULES, "CNN", "LSTM")  # the engine sentence-transformers runs these too, from our token ids
WEIGHTS_FILE = "model.safetensors"
MODULES_WITH_WEIGHTS = ("Dense", "LayerNorm", "CNN", "LSTM")


def check_head(folder: Path, engine: str) -> None:
    """Raise an error for modules that an engine cannot run; no weights are loaded."""
    modules = read_modules(folder)
    known = OWN_MODULES if engine == "transformers" else THEIR_MODULES
    problems = [f"the module {module.kind}" for module in modules if module.kind not in known]
    if engine == "transformers" and not problems:
        problems = _find_problems(modules)
    if problems:
        raise DataError(
            f"{folder} has {problems[0]}, which the engine {engine} cannot run",
            "use --engine sentence-transformers, or a --method of ours"
            if engine == "transformers"
            else "use a --method of ours, such as mean (another model)",
        )
    for module in modules:
        if module.kind in MODULES_WITH_WEIGHTS and not (folder / module.path / WEIGHTS_FILE).is_file():
            raise DataError(
                f"{folder / module.path} has no {WEIGHTS_FILE}",
                "save the model again as safetensors: pickles can run code when they are opened",
            )


def _find_problems(modules: list[PublishedModule]) -> list[str]:
    modes = [mode for module in modules for mode in module.get_pooling_modes()]
    if len(modes) != 1:
        return [f"{len(modes)} poolings ({', '.join(modes)})" if modes else "no pooling"]
    if modes[0] not in POOLINGS:
        return [f"{modes[0]} pooling"]
    if not all(module.reads_pooled for module in modules):
        return ["a module that does not read the pooled state"]
    if [module.kind for module in modules[:2]] != ["Transformer", "Pooling"]:
        return ["a module before its pooling"]
    return ["two transformers"] if [module.kind for module in modules].count("Transformer") > 1 else []
