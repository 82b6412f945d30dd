"""Prints where the fetched weights of the CPU bench lie."""

from retbench.engines.weights_cache import get_weights_folder

if __name__ == "__main__":
    print(get_weights_folder("smollm2-135m-instruct-q4"))
