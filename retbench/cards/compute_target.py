"""The site: where shards are computed. `--devices N|all`, or `--on ray:key=value,...`; a field here is an option there.

Nothing here may change a score, so nothing of it is in a key or a settings-id.
"""

from dataclasses import dataclass

from retbench.cards import options
from retbench.errors import UsageError, suggest_names


@dataclass(frozen=True)
class LocalTarget:
    """This machine: so many devices, 0 for all it has."""

    devices: int = 1


@dataclass(frozen=True)
class RayTarget:
    """A Ray cluster, and what each of its machines reaches: a folder, s3://bucket/prefix, any fsspec address."""

    store: str = ""
    address: str = "auto"  # as in ray.init: auto (and RAY_ADDRESS), HOST:PORT, ray://HOST:PORT
    workers: int = 0  # the most of them, 0 for as many as the cluster holds
    threads: int = 0  # CPU threads a worker, 0 for as many as this machine would use
    worker_timeout: int = 600  # seconds to wait for a cluster that has no worker left


ComputeTarget = LocalTarget | RayTarget


def parse_compute_target(word: str) -> ComputeTarget:
    """The site as typed."""
    if word == "all":
        return LocalTarget(0)
    if word.isdecimal() and int(word):
        return LocalTarget(int(word))
    name, wanted = options.split_options(word)
    if name != "ray":
        raise UsageError(f"there is no place called {word!r} to run on", suggest_names(name, ("1", "2", "all", "ray")))
    found = options.apply_options(RayTarget(), wanted)
    if not found.store:
        raise UsageError(
            "the machines of a cluster need a place that all of them reach", "write --on ray:store=ADDRESS"
        )
    return found
