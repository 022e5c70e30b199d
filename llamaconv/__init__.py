"""Convert and quantize Llama-family checkpoints.

The library is ``llamaconv.tasks``, one use case per file; the command line calls nothing else.
"""

__version__ = "0.1.0"
