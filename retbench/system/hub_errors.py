"""Errors of the Hugging Face hub as a RetbenchError: the cause and the next step."""

from collections.abc import Iterator
from contextlib import contextmanager

from retbench.errors import MissingError


@contextmanager
def translate_hub_errors(repo: str, next_step: str, kind: str = "", action: str = "fetched") -> Iterator[None]:
    """Turn an error of a hub call into a MissingError, whichever library raised it."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx or httpx2, depending on the hub's version

    try:
        yield
    except (OSError, HTTPError) as problem:
        raise build_hub_error(repo, problem, next_step, kind, action) from problem


def build_hub_error(
    repo: str, problem: Exception, next_step: str, kind: str = "", action: str = "fetched"
) -> MissingError:
    """Build the error for a repository that was not fetched or pushed.

    `kind` is the repository's part of an address, such as `datasets/`.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    chain = (problem, problem.__cause__)
    if any(isinstance(link, GatedRepoError) for link in chain):
        step = f"accept the licence at https://huggingface.co/{kind}{repo}, then set HF_TOKEN in the environment"
        return MissingError(f"{repo} is gated and this machine has no access to it", step)
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        step = "check its spelling; for a private repository set HF_TOKEN in the environment"
        return MissingError(f"there is no repository {repo} on the hub", step)
    lines = [line for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    return MissingError(f"{repo} could not be {action}: {lines[0]}", next_step)
