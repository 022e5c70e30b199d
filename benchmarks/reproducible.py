"""Are two runs the same, byte for byte? From different folders, with 1 and 2 threads."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from common import BUNDLED, files, llamaconv, parser, publish


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", type=Path, default=BUNDLED)
    options.add_argument("--mode", default="gptq.int4")
    options.add_argument("--samples", default="32")
    options.add_argument("--seq-len", default="512")
    chosen = options.parse_args()
    rows = []
    for place, threads in (("here", 1), ("there", 2), ("elsewhere", 2)):
        with tempfile.TemporaryDirectory(suffix=place) as folder:
            model, out = Path(folder) / f"model-{place}", Path(folder) / place / "out"
            shutil.copytree(chosen.model, model)
            llamaconv(
                "quantize",
                model,
                out,
                "--mode",
                chosen.mode,
                "--samples",
                chosen.samples,
                "--seq-len",
                chosen.seq_len,
                "--threads",
                str(threads),
                "-q",
            )
            digest = hashlib.sha256()
            for name, content in files(out):
                digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
        rows.append({"folder": place, "threads": threads, "sha256 of all files": digest.hexdigest()})
    publish(rows, chosen.json)
    if len({row["sha256 of all files"] for row in rows}) > 1:
        raise SystemExit("the runs differ")


if __name__ == "__main__":
    main()
