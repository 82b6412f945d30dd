"""The learning rate of every step."""

import math

from retbench.cards.recipe import Optimiser


def warmup_steps(settings: Optimiser, steps: int) -> int:
    """Steps on the way up."""
    return settings.warmup_steps or math.ceil(settings.warmup_share * steps)


def rate(settings: Optimiser, step: int, steps: int) -> float:
    """The rate of a step, counted from zero: up, then down to zero at the end."""
    up = warmup_steps(settings, steps)
    if step < up:
        share = math.log(step + 1) / math.log(up) if settings.warmup == "logarithmic" and up > 1 else step / up
        return settings.rate * share
    left = (steps - step) / max(1, steps - up)
    shapes = {"linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left)), "constant": 1.0}
    return settings.rate * shapes[settings.decay]
