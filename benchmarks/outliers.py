"""A wide model with planted outlier channels: time, memory and the error of each layer."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from common import llamaconv, parser, publish, random_tokens, synthetic_llama


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--width", type=int, default=2048)
    options.add_argument("--ffn", type=int, default=5632)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--outliers", type=int, default=6)
    options.add_argument("--mode", default="gptq.int4")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokens = random_tokens(Path(folder) / "tokens.npy", 32, 512)
        model = synthetic_llama(
            Path(folder) / "model",
            width=chosen.width,
            ffn=chosen.ffn,
            layers=chosen.layers,
            outliers=chosen.outliers,
        )
        run = llamaconv(
            "quantize", model, Path(folder) / "out", "--mode", chosen.mode, "--calibration", tokens, "-q", "--json"
        )
    result = json.loads(run.output)
    rows = [
        {"layer": layer["name"], "error": layer["error"], "damping": layer["damping"], "seconds": layer["seconds"]}
        for layer in result["layers"]
    ]
    publish(rows, chosen.json)
    print(
        f"whole process: {run.seconds:.1f} s, peak {run.peak_rss / 1e6:.0f} MB; by kind of work: "
        + ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in result["stage_seconds"].items())
    )


if __name__ == "__main__":
    main()
