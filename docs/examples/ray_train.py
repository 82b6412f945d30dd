"""Fine-tune on a Ray cluster: Ray Train starts the processes that torchrun would start, each runs the same words.

    python docs/examples/ray_train.py 2 finetune msmarco --model qwen2.5-coder --out /shared/models/mine

The first number is how many processes; on a cluster with GPUs each has one. `--out` and RETBENCH_CACHE must lie where
every machine reads and writes them.
"""

import sys

import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer


def process(asked: dict[str, list[str]]) -> None:
    """One of the processes: Ray Train has joined them already, so retbench finds them joined."""
    from retbench.cli.main import app

    sys.argv[1:] = asked["words"]
    code = app(standalone_mode=False)
    if code:
        raise RuntimeError(f"retbench left with exit code {code}")


def main() -> None:
    """Start them, wait for them."""
    count, words = int(sys.argv[1]), sys.argv[2:]
    ray.init()  # RAY_ADDRESS names the cluster; without one this machine is it
    gpus = ray.cluster_resources().get("GPU", 0) > 0
    TorchTrainer(
        process,
        train_loop_config={"words": words},
        scaling_config=ScalingConfig(num_workers=count, use_gpu=gpus),
    ).fit()


if __name__ == "__main__":
    main()
