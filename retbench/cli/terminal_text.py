"""Names and texts of others at a terminal: shown as they are, never as commands of the terminal or as rich's markup."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

# control characters except tab and line feed, among them the beginning of an escape sequence; and changes of direction
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def remove_control_characters(text: str) -> str:
    """Replace every character that a terminal would obey."""
    return CONTROL.sub("\ufffd", text)


def build_table_cell(text: object) -> "Text":
    """A cell of a table of rich, which would read `[/x]` in a plain text as markup."""
    from rich.text import Text

    return Text(remove_control_characters("" if text is None else str(text)))
