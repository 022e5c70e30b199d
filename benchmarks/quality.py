"""KL, top-1 and perplexity of each mode; with ``--peers``, GPTQModel on the same data in the same run.

Everything is judged by the same ``llamaconv evaluate`` against the dense model; ratios are to GPTQModel without
group-aware reordering, for the same width.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import BUNDLED, Measured, llamaconv, measure, parser, publish

BITS = {"gptq.int2": 2, "gptq.int3": 3, "gptq.int4": 4, "gptq.int8": 8}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", type=Path, default=BUNDLED)
    options.add_argument("--calibration", type=Path, help="token array or text; default the built-in corpus")
    options.add_argument(
        "--text", type=Path, nargs="*", default=[], help="what to judge on; default held-out documents"
    )
    options.add_argument("--modes", nargs="+", default=["gptq.int4", "gptq.int8", "gptq.int3", "llm.int8"])
    options.add_argument("--peers", action="store_true", help="run GPTQModel too; needs --calibration TOKENS.npy")
    options.add_argument("--group", default="128")
    options.add_argument("--samples", default="64")
    options.add_argument("--seq-len", default="512")
    chosen = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for mode in chosen.modes:
            out = Path(folder) / mode
            rows.append(_row("llamaconv", mode, out, _ours(chosen, mode, out), chosen))
            if chosen.peers and mode in BITS:
                for name, flags in (("gptqmodel", ()), ("gptqmodel plain", ("--plain",))):
                    out = Path(folder) / f"{name}-{mode}".replace(" ", "-")
                    run = measure(
                        sys.executable,
                        str(Path(__file__).with_name("gptqmodel_peer.py")),
                        str(chosen.model),
                        str(chosen.calibration),
                        str(out),
                        str(BITS[mode]),
                        chosen.group,
                        *flags,
                    )
                    rows.append(_row(name, mode, out, run, chosen))
    _add_ratios(rows)
    publish(rows, chosen.json)


def _ours(chosen: Any, mode: str, out: Path) -> Measured:
    given = ["--calibration", chosen.calibration] if chosen.calibration else ["--seq-len", chosen.seq_len]
    if mode == "llm.int8":
        return llamaconv("quantize", chosen.model, out, "--mode", mode, "-q")
    return llamaconv(
        "quantize",
        chosen.model,
        out,
        "--mode",
        mode,
        "--group-size",
        chosen.group,
        "--samples",
        chosen.samples,
        *given,
        "-q",
    )


def _row(tool: str, mode: str, out: Path, run: Measured, chosen: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"tool": tool, "mode": mode, "seconds": run.seconds, "peak MB": run.peak_rss / 1e6}
    for text in chosen.text or [None]:
        given = ["--text", text] if text else ["--seq-len", chosen.seq_len]
        verdict = json.loads(llamaconv("evaluate", out, "--against", chosen.model, *given, "--json", "-q").output)
        name = text.stem if text else "held-out"
        row |= {
            f"KL {name}": verdict["kl"],
            f"top-1 {name}": verdict["top1"],
            f"ppl ratio {name}": verdict["ppl_ratio"],
        }
    return row


def _add_ratios(rows: list[dict[str, Any]]) -> None:
    plain = {row["mode"]: row for row in rows if row["tool"] == "gptqmodel plain"}
    for row in rows:
        if row["mode"] in plain:
            for key in [key for key in row if key.startswith("KL ") or key in ("seconds", "peak MB")]:
                row[f"{key} ratio"] = row[key] / plain[row["mode"]][key]


if __name__ == "__main__":
    main()
