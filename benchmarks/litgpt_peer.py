"""litgpt's own converter on a checkpoint of ``convert_source.py``: ``python litgpt_peer.py DIRECTORY``.

It writes beside what it reads. (Its command line needs packages that it does not install; this is what that calls.)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

if __name__ == "__main__":
    convert_hf_checkpoint(Path(sys.argv[1]), model_name="Mistral-7B-v0.1")
