"""Loading and saving with transformers, as it is usually done: ``python transformers_peer.py MODEL OUT``."""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

if __name__ == "__main__":
    source, out = sys.argv[1:]
    disable_progress_bar()
    AutoModelForCausalLM.from_pretrained(source, dtype="auto").save_pretrained(out)
