"""Where shards are computed: `--devices N|all`, or `--on ray:key=value,...`; each field of a class is an option.

None of these options may change a score, so none is part of an embedding key or a settings-id.
"""

from dataclasses import dataclass

from retbench.cards import options
from retbench.errors import UsageError, suggest_names


@dataclass(frozen=True)
class LocalTarget:
    """Devices of this machine; 0 for all."""

    devices: int = 1


@dataclass(frozen=True)
class RayTarget:
    """A Ray cluster, and the `store` its machines share: a folder, s3://bucket/prefix or another fsspec address."""

    store: str = ""
    address: str = "auto"  # as in ray.init: auto (and RAY_ADDRESS), HOST:PORT, ray://HOST:PORT
    workers: int = 0  # the maximum; 0 for as many as the cluster has room for
    threads: int = 0  # CPU threads per worker; 0 for as many as this machine would use
    worker_timeout: int = 600  # seconds to wait for a new worker when none is left


ComputeTarget = LocalTarget | RayTarget


def parse_compute_target(text: str) -> ComputeTarget:
    """Parse the value of `--devices` or `--on`."""
    if text == "all":
        return LocalTarget(0)
    if text.isdecimal() and int(text):
        return LocalTarget(int(text))
    name, option_values = options.split_options(text)
    if name != "ray":
        raise UsageError(f"there is no compute target {text!r}", suggest_names(name, ("1", "2", "all", "ray")))
    target = options.apply_options(RayTarget(), option_values, renamed={"patience": "worker_timeout"})
    if not target.store:
        raise UsageError("a Ray cluster needs a store that all its machines reach", "write --on ray:store=ADDRESS")
    return target
