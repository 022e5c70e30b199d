"""How fast is ``download``, and how much memory does it take, beside ``curl`` and huggingface_hub?

A Hub on loopback, in a process of its own, serves one weight file. The contestants take turns; each round has fresh
processes and an empty directory, and the best of several rounds counts.

- ``curl | sha256sum``: received and hashed, nothing kept.
- ``curl`` to a file, then ``sha256sum``: what a careful user does by hand.
- huggingface_hub's ``snapshot_download``: kept, not hashed.
- ``llamaconv download``: received, hashed, kept, synced to the disk.

Memory is that of ``download`` for files of two sizes, above an interpreter that does nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Measured, alone, measure, parser, publish
from hub_process import REPOSITORY, serving

NAME = "model.safetensors"
SNAPSHOT = (
    "import sys; from huggingface_hub import snapshot_download; "
    "snapshot_download(sys.argv[1], local_dir=sys.argv[2], endpoint=sys.argv[3])"
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--megabytes", type=int, nargs=2, default=[100, 1000], help="of the smaller and the larger file"
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where 4 GB are free; default as TMPDIR says")
    chosen = options.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        runs = {size: _contest(folder, size, chosen.rounds) for size in chosen.megabytes}
    base = alone(sys.executable, "-c", "pass").peak_rss
    large = chosen.megabytes[-1]
    reference = min(run.seconds for run in runs[large]["curl | sha256sum"])
    rows = [_row(tool, size, found[tool], base, reference) for size, found in runs.items() for tool in found]
    for row in rows:
        if row["megabytes"] != large:
            row.pop("rate to curl | sha256sum")
    publish(rows, chosen.json)


def _contest(folder: Path, megabytes: int, rounds: int) -> dict[str, list[Measured]]:
    source = folder / f"source-{megabytes}"
    source.mkdir()
    with (source / NAME).open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))
    (source / "config.json").write_text("{}")
    with serving(source) as endpoint:
        tools = _tools(endpoint)
        runs: dict[str, list[Measured]] = {tool: [] for tool in tools}
        for _ in range(rounds):
            for tool, run in tools.items():
                out = folder / "out"
                runs[tool].append(run(out))
                shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(source)
    return runs


def _tools(endpoint: str) -> dict[str, Callable[[Path], Measured]]:
    url = f"{endpoint}/{REPOSITORY}/resolve/main/{NAME}"
    download = (sys.executable, "-m", "llamaconv", "download", REPOSITORY, "-q", "--endpoint", endpoint, "--local-dir")
    return {
        "curl | sha256sum": lambda out: measure("bash", "-c", f"set -o pipefail; curl -sSfL {url} | sha256sum"),
        "curl, then sha256sum": lambda out: measure(
            "bash", "-c", f"mkdir {out} && curl -sSfLo {out}/{NAME} {url} && sha256sum {out}/{NAME}"
        ),
        "snapshot_download": lambda out: alone(sys.executable, "-c", SNAPSHOT, REPOSITORY, str(out), endpoint),
        "llamaconv download": lambda out: alone(*download, str(out)),
        "llamaconv download, one connection": lambda out: alone(*download, str(out), "--max-workers", "1"),
    }


def _row(tool: str, megabytes: int, runs: list[Measured], base: int, reference: float) -> dict[str, Any]:
    seconds = min(run.seconds for run in runs)
    ours = tool.startswith(("llamaconv", "snapshot"))
    return {
        "megabytes": megabytes,
        "tool": tool,
        "seconds": seconds,
        "MB/s": megabytes / seconds,
        "rate to curl | sha256sum": reference / seconds,
        "peak MB above the interpreter": (max(run.peak_rss for run in runs) - base) / 1e6 if ours else None,
    }


if __name__ == "__main__":
    main()
