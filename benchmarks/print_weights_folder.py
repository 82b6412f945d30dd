"""Prints the folder of the fetched weights for the CPU benchmark."""

from retbench.engines.weights_cache import get_weights_folder

if __name__ == "__main__":
    print(get_weights_folder("smollm2-135m-instruct-q4"))
