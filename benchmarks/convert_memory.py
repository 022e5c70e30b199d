"""How much memory does ``convert`` take for a model of 4 GB?

Whole-process peaks, a fresh process for each conversion, beside what they may be: the bare import of torch, twice the
largest tensor, and 100 MB. One that takes more is a failure.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from common import alone, parser, publish
from convert_common import LARGEST_TENSOR, convert, random_llama, size_of

SLACK = 100_000_000


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--folder", type=Path, help="where 17 GB are free; default as TMPDIR says")
    chosen = options.parse_args()
    bare = alone(sys.executable, "-c", "import torch").peak_rss
    limit = bare + 2 * LARGEST_TENSOR + SLACK
    rows, above = [], []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        hub, torch_files, meta, out = (Path(folder) / name for name in ("hub", "torch", "meta", "out"))
        random_llama(hub, chosen.layers)
        for what, source, kept, arguments in (
            ("hf to torch files", hub, torch_files, ("--to", "hf", "--format", "torch")),
            ("hf to meta", hub, meta, ("--to", "meta")),
            ("hf to other shards", hub, out, ("--to", "hf", "--max-shard-size", "1GB")),
            ("hf to litgpt", hub, out, ("--to", "litgpt")),
            ("hf to meta, 2 ranks", hub, out, ("--to", "meta", "--tensor-parallel", "2")),
            ("hf to float16", hub, out, ("--to", "hf", "--dtype", "float16", "--allow-overflow")),
            ("torch files to safetensors", torch_files, out, ("--to", "hf")),
            ("meta to hf", meta, out, ("--to", "hf")),
        ):
            run = convert(source, kept, *arguments)
            rows.append(
                {
                    "conversion": what,
                    "GB": size_of(kept) / 1e9,
                    "seconds": run.seconds,
                    "peak MB": run.peak_rss / 1e6,
                    "above import MB": (run.peak_rss - bare) / 1e6,
                    "limit MB": limit / 1e6,
                }
            )
            if run.peak_rss > limit:
                above.append(what)
            if kept == out:
                shutil.rmtree(out)
    publish(rows, chosen.json)
    if above:
        raise SystemExit(f"above the limit: {', '.join(above)}")


if __name__ == "__main__":
    main()
