"""Quantizes and evaluates the bundled model: python quantize_bundled.py OUT. Figures go to OUT/figures.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llamaconv.tasks.evaluate import EvaluateSettings, evaluate
from llamaconv.tasks.quantize import QuantizeSettings, quantize
from tests.interop.artifacts import BUNDLED

MODES = ("gptq.int4", "llm.int8")


def main(out: Path) -> None:
    """Calibrate on the built-in corpus, evaluate on its held-out part: tokenizers and model code have a say too."""
    figures = {}
    for mode in MODES:
        quantize(BUNDLED, out / mode, QuantizeSettings(mode, samples=8, seq_len=128, threads=1))
        result = evaluate(out / mode, EvaluateSettings(against=BUNDLED, samples=4, seq_len=128, threads=1))
        figures[mode] = {key: result.to_json()[key] for key in ("data_sha256", "tokens", "perplexity", "kl", "top1")}
    (out / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
