"""Does the peak memory of ``quantize`` depend on how deep the model is?

Two random Llamas of one width, 8 and 32 blocks; whole-process peaks above the bare import of torch and transformers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import BARE_IMPORT, llamaconv, measure, parser, publish, random_tokens, synthetic_llama


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--width", type=int, default=1024)
    options.add_argument("--ffn", type=int, default=2816)
    options.add_argument("--layers", type=int, nargs="+", default=[8, 32])
    options.add_argument("--samples", type=int, default=64)
    options.add_argument("--seq-len", type=int, default=512)
    options.add_argument("--mode", default="gptq.int4")
    chosen = options.parse_args()
    bare = measure(*BARE_IMPORT).peak_rss
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = random_tokens(Path(folder) / "tokens.npy", chosen.samples, chosen.seq_len)
        for layers in chosen.layers:
            model = synthetic_llama(Path(folder) / f"{layers}", width=chosen.width, ffn=chosen.ffn, layers=layers)
            size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
            out = Path(folder) / f"out-{layers}"
            run = llamaconv("quantize", model, out, "--mode", chosen.mode, "--calibration", tokens, "-q")
            rows.append(
                {
                    "layers": layers,
                    "model MB": size / 1e6,
                    "seconds": run.seconds,
                    "peak MB": run.peak_rss / 1e6,
                    "bare import MB": bare / 1e6,
                    "above import MB": (run.peak_rss - bare) / 1e6,
                }
            )
    first = rows[0]["above import MB"]
    for row in rows:
        row["ratio"] = row["above import MB"] / first
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
