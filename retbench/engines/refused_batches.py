"""What a refusal says about the size of a request: the server's most texts, or a text that is too long.

Servers word it freely, so a number counts only if fewer texts than that were sent, and only beside the words below.
"""

import re

TOO_LARGE = 413
REFUSALS = (400, TOO_LARGE, 422)
# each names the most texts of a request; the examples are TEI, OpenAI, Cohere and Gemini, Azure, DashScope
BATCH_LIMITS = (
    r"maximum allowed batch size (\d+)",
    r"maximum length (?:of )?(\d+)",
    r"at most (\d+)\b(?! tokens)",
    r"max(?:imum)? number of inputs is (\d+)",
    r"not be larger than (\d+)",
    r"(\d+) (?:items|inputs|texts) or (?:less|fewer)",
    r"max(?:imum)? (?:client )?batch size[^0-9]{0,20}(\d+)",
    r"batch size limit[^0-9]{0,20}(\d+)",
)
ABOUT_SIZE = re.compile(r"batch|tokens|too (?:many|long|large)|(?:context|maximum) length|length limit|at most", re.I)
TOKEN_LIMITS = (
    r"maximum context length (?:is|of) (\d+)\D.*?(?:requested|has|resulted in|passed) (?:\w+ ){0,3}?(\d+)",
    r"less than (\d+) tokens\. given: (\d+)",
    r"max(?:imum)?[^0-9]{0,30}?(\d+)[^0-9]{1,40}?(\d+)",
)


def find_batch_limit(text: str, sent: int) -> int | None:
    """The most texts of a request that the server names; None if it names none below the number that was sent."""
    for pattern in BATCH_LIMITS:
        for found in re.finditer(pattern, text, re.IGNORECASE):
            if 1 <= int(found[1]) < sent:
                return int(found[1])
    return None


def is_about_size(status: int, text: str) -> bool:
    """Whether fewer or shorter texts may be accepted."""
    return status == TOO_LARGE or (status in REFUSALS and ABOUT_SIZE.search(text) is not None)


def find_kept_share(text: str) -> float | None:
    """The share of a text that the server would take, from the tokens it allows and those it got; None if not named."""
    for pattern in TOKEN_LIMITS:
        found = re.search(pattern, text, re.IGNORECASE | re.DOTALL)
        if found and 0 < int(found[1]) < int(found[2]):
            return int(found[1]) / int(found[2])
    return None
