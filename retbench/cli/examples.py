"""The examples below the help of each command. They are parsed in the tests, and each fits a terminal of 80 columns."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "retbench run --model bm25 --model minilm-l6 --suite stdlib --sample 50",
        "retbench run --model ./my-model --task ./my-folder --method last --dry-run",
    ),
    "rerank": ("retbench rerank SETTINGS-ID --with rocchio:model=minilm-l6",),
    "finetune": (
        "retbench finetune stdlib-code --model minilm-l6 --recipe quick --name mine",
        "retbench finetune ./my-folder --model minilm-l6 --objective adaptor",
    ),
    "report": ("retbench report", "retbench report --format html --out board.html"),
    "compare": (
        "retbench compare bm25 minilm-l6 --task stdlib-code",
        "retbench compare SETTINGS-ID other-system.trec --queries 10",
    ),
    "inspect": ("retbench inspect SETTINGS-ID --query q1",),
    "verify": ("retbench verify SETTINGS-ID", "retbench verify SETTINGS-ID --against sentence-transformers"),
    "export": ("retbench export SETTINGS-ID --out mteb-results",),
    "push": ("retbench push my-model my-name/my-model --dry-run",),
    "import": ("retbench import ./mteb-results",),
    "list": ("retbench list models", "retbench list results"),
    "show": ("retbench show task scifact", "retbench show model minilm-l6 --text 'how are you'"),
    "fetch": ("retbench fetch minilm-l6 scifact", "retbench fetch --list"),
    "plan": ("retbench plan --model minilm-l6 --documents 10000000 --rate 200000",),
    "overlap": ("retbench overlap stdlib-code stdlib-doc",),
    "doctor": ("retbench doctor",),
    "study list": ("retbench study list",),
    "study show": ("retbench study show promptreps --price 3.5",),
    "study run": ("retbench study run specialized-mini --dry-run",),
    "study status": ("retbench study status specialized-mini --watch",),
    "study report": ("retbench study report specialized-mini --format html --out study.html",),
    "study new": ("retbench study new mine --model bm25 --model minilm-l6 --suite stdlib",),
    "cache list": ("retbench cache list",),
    "cache prune": ("retbench cache prune --unfinished --dry-run",),
}


def format_examples(command: str) -> str:
    """Format the examples of a command as the text below its help."""
    examples = EXAMPLES[command]
    return "\n\n".join(["Examples:" if len(examples) > 1 else "Example:", *examples])
