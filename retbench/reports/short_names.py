"""Names that are too long for a table or a picture. Names that begin alike differ at their ends, so the middle goes."""


def cut_in_the_middle(name: str, length: int) -> str:
    """A long name without its middle."""
    if len(name) <= length:
        return name
    end = length // 2 - 1
    return f"{name[: length - end - 1]}…{name[-end:]}"
