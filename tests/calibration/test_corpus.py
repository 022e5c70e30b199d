from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from llamaconv.calibration.corpus import corpus_folder, read_corpus
from llamaconv.calibration.readers import Document
from llamaconv.errors import IntegrityError

HINT = "Reinstall llamaconv, or give data of your own with --calibration."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus of three documents."""
    texts = {
        "c/a.c": ("calibration", "int a;\n"),
        "prose/b.txt": ("evaluation", "Bé.\n"),
        "prose/d.txt": ("calibration", "D.\n"),
    }
    entries = []
    for file, (split, text) in texts.items():
        path = tmp_path / "corpus" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        data = text.encode()
        entry = {"file": file, "kind": file.split("/")[0], "language": "en", "split": split, "bytes": len(data)}
        entries.append(entry | {"sha256": hashlib.sha256(data).hexdigest()})
    lines = "".join(f"{entry['sha256']}  {entry['file']}\n" for entry in entries)
    index = {"licence": "Apache-2.0", "documents": entries, "sha256": hashlib.sha256(lines.encode()).hexdigest()}
    (tmp_path / "corpus" / "index.json").write_text(json.dumps(index))
    return tmp_path / "corpus"


def test_a_split_is_read_in_the_order_of_the_index(folder: Path) -> None:
    """Each split has its own documents, none of the other's."""
    assert read_corpus("calibration", folder) == (Document("c/a.c", "int a;\n"), Document("prose/d.txt", "D.\n"))
    assert read_corpus("evaluation", folder) == (Document("prose/b.txt", "Bé.\n"),)


def test_every_changed_or_missing_document_is_named(folder: Path) -> None:
    """A changed byte and a missing file are found on reading, both in one error."""
    (folder / "c/a.c").write_text("int b;\n")
    (folder / "prose/d.txt").unlink()
    with pytest.raises(IntegrityError) as caught:
        read_corpus("calibration", folder)
    changed, right = (hashlib.sha256(text).hexdigest() for text in (b"int b;\n", b"int a;\n"))
    assert str(caught.value) == (
        f"the built-in calibration corpus: c/a.c: its SHA-256 is {changed}, not {right}.\n"
        "the built-in calibration corpus: prose/d.txt: No such file or directory."
    )
    assert (caught.value.hint, caught.value.exit_code) == (HINT, 6)


def test_an_index_that_was_edited_is_refused(folder: Path) -> None:
    """A document left out of the index is noticed by the digest over the lot."""
    index = json.loads((folder / "index.json").read_bytes())
    index["documents"] = index["documents"][:2]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError) as caught:
        read_corpus("calibration", folder)
    assert str(caught.value) == "the built-in calibration corpus: index.json does not agree with its own digest."


@pytest.mark.parametrize("text", ["", "[]", '{"documents": [], "sha256": ""}'])
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    """An index of another form is damage, not an empty corpus."""
    (folder / "index.json").write_text(text)
    with pytest.raises(IntegrityError) as caught:
        read_corpus("calibration", folder)
    assert str(caught.value) == "the built-in calibration corpus: index.json cannot be read."


def test_the_first_place_with_an_index_is_taken(folder: Path, tmp_path: Path) -> None:
    """A folder that is there but holds no index is passed over."""
    (tmp_path / "empty").mkdir()
    later = tmp_path / "later"
    shutil.copytree(folder, later)
    assert corpus_folder([tmp_path / "absent", tmp_path / "empty", folder, later]) == folder


def test_an_absent_corpus_says_where_it_was_looked_for(tmp_path: Path) -> None:
    """Both places are named."""
    with pytest.raises(IntegrityError) as caught:
        corpus_folder([tmp_path / "a", tmp_path / "b"])
    assert str(caught.value) == (
        f"the built-in calibration corpus: it is not there (looked in {tmp_path / 'a'} and {tmp_path / 'b'})."
    )


def test_the_installed_corpus_is_found_and_whole() -> None:
    """As llamaconv is installed here, every document of both splits is there and as it was published."""
    index = json.loads((corpus_folder() / "index.json").read_text(encoding="utf-8"))
    names = [document.name for split in ("calibration", "evaluation") for document in read_corpus(split)]
    assert sorted(names) == [entry["file"] for entry in index["documents"]]
