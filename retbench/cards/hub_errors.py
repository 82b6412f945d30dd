"""What the Hugging Face hub answers when it does not hand over a repository, in two lines a reader can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

from retbench.errors import MissingError


@contextmanager
def translate_hub_errors(repo: str, way_on: str, kind: str = "") -> Iterator[None]:
    """Around calls to the hub: what fails there is an error with a next step, whichever of its libraries raised it."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx or httpx2, as the hub has it

    try:
        yield
    except (OSError, HTTPError) as problem:
        raise build_hub_error(repo, problem, way_on, kind) from problem


def build_hub_error(repo: str, problem: Exception, way_on: str, kind: str = "") -> MissingError:
    """The error for a repository that did not come; `kind` is its part of an address, such as `datasets/`."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    chain = (problem, problem.__cause__)
    if any(isinstance(link, GatedRepoError) for link in chain):
        step = f"accept the licence at https://huggingface.co/{kind}{repo}, then set HF_TOKEN in the environment"
        return MissingError(f"{repo} is gated, and this machine has not been let in", step)
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        step = "check how it is written; for a private one set HF_TOKEN in the environment"
        return MissingError(f"the hub shows no repository {repo}", step)
    said = [line for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    return MissingError(f"{repo} could not be fetched: {said[0]}", way_on)
