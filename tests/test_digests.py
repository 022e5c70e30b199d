from __future__ import annotations

import hashlib
from pathlib import Path

from llamaconv.digests import sha256_bytes, sha256_file

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_digest_of_bytes_is_the_published_test_vector() -> None:
    """FIPS 180-2 gives the SHA-256 of "abc"."""
    assert sha256_bytes(b"abc") == ABC


def test_file_digest_does_not_depend_on_chunks(tmp_path: Path) -> None:
    """A file longer than any chunk has the digest of its bytes."""
    data = bytes(range(251)) * 20_000
    (tmp_path / "big").write_bytes(data)
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "big") == hashlib.sha256(data).hexdigest()
    assert sha256_file(str(tmp_path / "abc")) == ABC
