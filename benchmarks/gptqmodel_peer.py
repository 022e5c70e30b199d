"""GPTQModel on the same model and tokens: ``python gptqmodel_peer.py MODEL TOKENS.npy OUT BITS GROUP [--plain]``.

``--plain`` switches its group-aware reordering off.
"""

from __future__ import annotations

import os
import sys

# Two of its CPU workers are reserved for loading; on two cores it would start only one and stop.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import numpy as np
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def main() -> None:
    model, tokens, out, bits, group, *flags = sys.argv[1:]
    options = {"act_group_aware": False} if "--plain" in flags else {}
    config = QuantizeConfig(bits=int(bits), group_size=int(group), desc_act=False, device="cpu", **options)
    rows = torch.from_numpy(np.load(tokens)).long()
    samples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in rows]
    quantized = GPTQModel.load(model, config, backend=BACKEND.AUTO)
    quantized.quantize(samples, batch_size=1)
    quantized.save(out)


if __name__ == "__main__":
    main()
