"""What the quantizers are called on the command line, without the cost of importing them."""

from __future__ import annotations

__all__ = ["MODES"]

MODES = ("gptq.int4", "gptq.int8", "gptq.int3", "gptq.int2", "llm.int8")
