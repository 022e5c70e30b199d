"""How wide Meta's MLP is: a formula over two parameters, and the parameters for a width.

Source: ``FeedForward`` in meta-llama's ``llama/model.py``; lit-llama's ``MLP`` is the case of 256 and no multiplier.
"""

from __future__ import annotations

__all__ = ["mlp_factors", "mlp_width"]

_RELEASED = ((256, None), (256, 1.5), (4096, 1.3), (4096, 1.2), (1024, 1.3), (1024, 1.4))
_POWERS = tuple(2**power for power in range(12, -1, -1))


def mlp_width(hidden: int, multiple_of: int, multiplier: float | None = None) -> int:
    """Rows of w1: two thirds of four times the model's width, times the multiplier, rounded up."""
    width = int(8 * hidden / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


def mlp_factors(hidden: int, width: int) -> tuple[int, float | None]:
    """A ``multiple_of`` and a ``ffn_dim_multiplier`` that make ``width``: released ones, else the shortest decimal.

    Args:
        hidden, width: Up to 10^15.
    """
    for multiple, multiplier in (*_RELEASED, *((power, None) for power in _POWERS)):
        if mlp_width(hidden, multiple, multiplier) == width:
            return multiple, multiplier
    multiple = next(power for power in _POWERS if width % power == 0)
    # All from above width - multiple up to width is rounded up to width, and the middle of that is hit in any case.
    middle = (width + 1 - multiple / 2) / int(8 * hidden / 3)
    decimals = (round(middle, digits) for digits in range(1, 18))
    return multiple, next(decimal for decimal in decimals if mlp_width(hidden, multiple, decimal) == width)
