"""Prints the folder of a model's fetched weights for the CPU benchmark."""

import sys

from retbench.engines.weights_cache import get_weights_folder

DECODER = "smollm2-135m-instruct-q4"

if __name__ == "__main__":
    print(get_weights_folder(sys.argv[1] if len(sys.argv) > 1 else DECODER))
