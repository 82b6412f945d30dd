"""Fine-tune on a Ray cluster: Ray Train starts the processes, as torchrun would, each with the same command line.

    python docs/examples/ray_train.py 2 finetune msmarco --model qwen2.5-coder --out /shared/models/mine

The first argument is the number of processes; on a cluster with GPUs each process has one. Every machine must be able
to read and write `--out` and RETBENCH_CACHE.
"""

import sys

import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer


def run_process(config: dict[str, list[str]]) -> None:
    """Run the command line in one process. Ray Train has already joined the processes to one group."""
    from retbench.cli.main import app

    sys.argv[1:] = config["arguments"]
    code = app(standalone_mode=False)
    if code:
        raise RuntimeError(f"retbench ended with exit code {code}")


def main() -> None:
    """Start the processes and wait for them."""
    process_count, arguments = int(sys.argv[1]), sys.argv[2:]
    ray.init()  # RAY_ADDRESS names the cluster; without it Ray starts one on this machine
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    TorchTrainer(
        run_process,
        train_loop_config={"arguments": arguments},
        scaling_config=ScalingConfig(num_workers=process_count, use_gpu=has_gpus),
    ).fit()


if __name__ == "__main__":
    main()
