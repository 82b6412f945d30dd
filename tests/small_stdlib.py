"""A few invented functions in place of Python's standard library, because reading that takes seconds."""

from retbench.corpora.stdlib_definitions import Definition

LETTERS = "abcdefghij"


def build_definitions(count: int) -> list[Definition]:
    """Functions with a docstring, at most 1,000; no two have a text in common."""
    names = [f"{a}{b}{c}" for a in LETTERS for b in LETTERS for c in LETTERS][:count]
    return [
        Definition(
            f"module:{name}",
            name,
            f"Compute the {name} value quickly.\n\nThe {name} rest has many useful other words about {name} things "
            "which nobody reads.",
            f"def {name}(left, right):",
            f"    total = left plus right\n    return total times value{name}",
            "module.py",
        )
        for name in names
    ]
