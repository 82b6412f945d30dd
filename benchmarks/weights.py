"""Prints where the fetched weights of the CPU bench lie."""

from retbench.engines.weights_cache import place

if __name__ == "__main__":
    print(place("smollm2-135m-instruct-q4"))
