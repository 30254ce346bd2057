"""What a model with depthwise convolutions keeps in f32 when it is asked for bf16 or f16.

A depthwise convolution sums a handful of products per number, so nothing averages the rounding of its inputs away, and
EfficientNet-Lite's first ones take differences of large numbers: in bf16 throughout, the logits of its 20 pictures keep
a cosine of 0.987 to f32, and 0.995 when only the first such convolution is rounded. The dense products, most of the
arithmetic by far, stand it. So dense products are narrow, from the block after EXACT_BLOCKS depthwise convolutions on;
depthwise convolutions, normalisation, activations and sums are in f32. That keeps 0.9995 and most of the speed.
"""

from __future__ import annotations

EXACT_BLOCKS = 3


def exact_blocks(depthwise: int) -> int:
    """How many depthwise convolutions come before the first narrow product. depthwise: how many the model has."""
    return min(EXACT_BLOCKS, depthwise // 4)


def told(narrow: int, products: int, precision: str) -> str:
    """For a person. narrow: how many of the dense products are."""
    return (
        f"{narrow} of {products} dense products compute in {precision}; depthwise convolutions, normalisation, sums "
        "and the first blocks stay in f32"
    )
