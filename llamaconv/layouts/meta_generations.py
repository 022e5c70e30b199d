"""What Meta's releases have in common generation by generation, and leave out of params.json.

Source: transformers ``models/llama/convert_llama_weights_to_hf.py``, which is told the generation, and the config.json
files of the releases.

**The factor of Llama 3's rotary scaling.** Meta's code computes with 8, whatever the model, though 3.2 is meant to have
32, as its config.json says. The width tells them apart: 3.2 is 2,048 or 3,072 wide, 3.1 and 3.3 are wider.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LLAMA_3_VOCABULARY", "Generation", "generation", "usual_factor"]

LLAMA_3_VOCABULARY = 128_000
"""Of Llama 3's tokenizer, before its special tokens; the others have about 32,000."""


@dataclass(frozen=True)
class Generation:
    """What a release of this kind has.

    Attributes:
        name: Of the generation.
        max_positions: The longest sequence.
        rope_theta: Base of the rotary frequencies.
        bos, eos: Tokens of the base models.
    """

    name: str
    max_positions: int
    rope_theta: float
    bos: int
    eos: int


def usual_factor(width: int) -> float:
    """Of the rotary scaling: Llama 3.2's up to its width, else Llama 3.1's."""
    return 32.0 if width <= 3072 else 8.0


def generation(
    *, width: int, grouped: bool, vocabulary: int, rope_theta: float | None, norm_eps: float | None, scaled: bool
) -> Generation:
    """The generation that a model is most like.

    Args:
        width: Of the model.
        grouped: Whether there are fewer key-value heads than heads.
        vocabulary: Size, counted off the tensors.
        rope_theta, norm_eps: None where params.json does not say.
        scaled: Whether the rotary frequencies are.
    """
    tokens = (128_000, 128_001) if vocabulary >= LLAMA_3_VOCABULARY else (1, 2)
    if scaled:
        return Generation(f"Llama {'3.2' if usual_factor(width) == 32 else '3.1'}", 131_072, 500_000.0, *tokens)
    if vocabulary >= LLAMA_3_VOCABULARY:
        return Generation("Llama 3", 8192, 500_000.0, *tokens)
    if rope_theta is not None and rope_theta > 10_000:
        return Generation("Code Llama", 16_384, 1_000_000.0, *tokens)
    # Llama 2 has an epsilon of 1e-5 throughout, and groups its queries where it is wide.
    if (norm_eps is not None and norm_eps < 1e-5) or (width >= 6656 and not grouped):
        return Generation("Llama 1", 2048, 10_000.0, *tokens)
    return Generation("Llama 2", 4096, 10_000.0, *tokens)
