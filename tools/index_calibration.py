"""Writes calibration/index.json, and the figures in calibration/README.md, from the documents beside them.

Run it from anywhere after a document changed: ``python tools/index_calibration.py``. It asks for nothing and
prints nothing; `git diff` shows what it did, and tests/test_corpus.py holds the folder to the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).resolve().parents[1] / "calibration"

# Held out of quantization, so that an evaluation without a text of its own does not read what was calibrated
# on. A list, not a rule: a new document must not move an old one to the other side. About every sixth; each
# kind, and each of four scripts, has one here and others left to calibrate on.
EVALUATION = frozenset(
    {
        "c/scratch_arena.c",
        "dialogue/radio-lichen-hour.txt",
        "json/limestone-springs.json",
        "languages/ar-the-bookbinders-key.txt",
        "languages/fr-questions-about-tides.txt",
        "languages/ru-why-lake-ice-sings.txt",
        "languages/zh-a-jar-of-pickled-greens.txt",
        "markup/tidewatch-manual.md",
        "mathematics/sums-of-two-squares.md",
        "prose/the-weighbridge.txt",
        "python/sniff_delimited.py",
        "questions/physics-worked-stepwise.txt",
        "shell/matrix_runner.sh",
        "sql/greenhouse_sensor_windows.sql",
        "tables/island-league-and-larder.md",
    }
)
TABLE_BEGIN, TABLE_END = "<!-- figures: tools/index_calibration.py -->\n", "<!-- end of figures -->\n"


def entry(path: Path) -> dict[str, Any]:
    """What the index says of one document; ``language`` is the human one (BCP 47), of comments in code."""
    file = path.relative_to(CORPUS).as_posix()
    kind = path.parent.name
    data = path.read_bytes()
    return {
        "file": file,
        "kind": kind,
        "language": path.name.split("-")[0] if kind == "languages" else "en",
        "split": "evaluation" if file in EVALUATION else "calibration",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def digest(documents: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of what ``sha256sum`` prints for the documents in their order: one line each."""
    lines = "".join(f"{document['sha256']}  {document['file']}\n" for document in documents)
    return hashlib.sha256(lines.encode()).hexdigest()


def figures(documents: Sequence[dict[str, Any]], total: str) -> str:
    """The README's table: one row per kind, then the lot, then the digest."""
    kinds = sorted({document["kind"] for document in documents})
    rows = [(kind, [document for document in documents if document["kind"] == kind]) for kind in kinds]
    lines = [
        "| kind | documents | bytes | characters | held out for evaluation |",
        "|---|---:|---:|---:|---:|",
        *(_row(kind, of_kind) for kind, of_kind in rows),
        _row("**all**", documents),
        "",
        f"Digest: `{total}`",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, documents: Sequence[dict[str, Any]]) -> str:
    size = sum(document["bytes"] for document in documents)
    characters = sum(len((CORPUS / document["file"]).read_text(encoding="utf-8")) for document in documents)
    held = [document["bytes"] for document in documents if document["split"] == "evaluation"]
    return f"| {name} | {len(documents)} | {size:,} | {characters:,} | {len(held)} ({sum(held):,} bytes) |"


def main() -> None:
    """Rewrite the index and the README's figures.

    Raises:
        ValueError: A held-out document is not there, or the README has lost the marks around its figures.
    """
    documents = [entry(path) for path in sorted(CORPUS.glob("*/*")) if path.is_file()]
    if missing := EVALUATION - {document["file"] for document in documents}:
        raise ValueError(f"EVALUATION names documents that are not in {CORPUS}: {sorted(missing)}")
    index: dict[str, Any] = {"licence": "Apache-2.0", "documents": documents, "sha256": digest(documents)}
    (CORPUS / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    readme = CORPUS / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not (begin and end):
        raise ValueError(f"{readme}: the marks around its figures are gone")
    readme.write_text(before + begin + figures(documents, index["sha256"]) + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
