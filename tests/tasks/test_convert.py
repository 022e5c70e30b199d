"""Any layout to any other, through files that are really there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import torch

from llamaconv.config import read_config
from llamaconv.errors import UnsupportedError
from llamaconv.tasks.source import contradictions
from tests.conftest import Checkpoint
from tests.models import load_weights, random_tokens, reference, reference_logits, save_weights
from tests.tasks.conversions import HELD, MODELS, NO_TOKENIZER, STATED, WARNING, same_bits, stored, to

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NATIVE = ("litgpt", "lit-llama", "meta")
ORDER = ("hf", "litgpt", "lit-llama", "meta")
Converted = Callable[[str, str, torch.dtype], Path]


@pytest.fixture(scope="module")
def converted(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A model of ``MODELS`` in a layout, converted from Hugging Face's once. Not to be written to."""
    made: dict[tuple[str, str, torch.dtype], Path] = {}

    def find(name: str, layout: str, dtype: torch.dtype) -> Path:
        family, changes = MODELS[name]
        source = checkpoint(family, dtype=dtype, **changes)
        if layout == "hf":
            return source
        if (name, layout, dtype) not in made:
            out = tmp_path_factory.mktemp(layout) / "out"
            made[name, layout, dtype] = to(layout, source, out).out
        return made[name, layout, dtype]

    return find


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "layout"), [(name, layout) for name, layouts in HELD.items() for layout in layouts])
def test_there_and_back_every_tensor_is_the_same(
    converted: Converted, tmp_path: Path, name: str, layout: str, dtype: torch.dtype
) -> None:
    """Bit for bit and in its own dtype, and what config.json says of the model too."""
    source = converted(name, "hf", dtype)
    back = to("hf", converted(name, layout, dtype), tmp_path / "back", **STATED[layout])
    assert (back.source_layout, back.layout, back.losses) == (layout, "hf", ())
    assert same_bits(load_weights(back.out), load_weights(source))
    found, config = read_config(back.out), read_config(source)
    family = MODELS[name][0]
    assert found.model_type == ("llama" if layout == "meta" else family)
    assert contradictions(found, config, unsaid=("model_type",)) == []
    assert found.dtype == dtype


@pytest.mark.parametrize(("name", "layout"), [(name, layout) for name, layouts in HELD.items() for layout in layouts])
def test_there_and_back_the_model_computes_the_same(
    converted: Converted, tmp_path: Path, name: str, layout: str
) -> None:
    """transformers gives equal logits for equal tensors and an equal config.json."""
    back = to("hf", converted(name, layout, torch.float32), tmp_path / "back", **STATED[layout]).out
    (tokens,) = random_tokens(1)
    source = converted(name, "hf", torch.float32)
    assert torch.equal(reference_logits(reference(back), tokens), reference_logits(reference(source), tokens))


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [(name, *pair) for name, layouts in HELD.items() for pair in permutations(layouts, 2)],
)
def test_from_one_layout_to_another_is_as_from_the_hub(
    converted: Converted, tmp_path: Path, name: str, source: str, target: str
) -> None:
    """What comes of a layout's files is what comes of Hugging Face's, bit for bit."""
    direct = stored(converted(name, target, torch.bfloat16))
    result = to(target, converted(name, source, torch.bfloat16), tmp_path / "out", **STATED[source])
    assert same_bits(stored(result.out), direct)


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, layout) for name in HELD for layout in NATIVE if layout not in HELD[name]],
)
def test_what_a_layout_cannot_hold_is_refused_before_a_byte_is_written(
    converted: Converted, tmp_path: Path, name: str, layout: str
) -> None:
    """With the fact, a layout that can, and exit code 3."""
    with pytest.raises(UnsupportedError) as caught:
        to(layout, converted(name, "hf", torch.float32), tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"The layout {layout} cannot hold this model:"
    assert len(lines) > 1
    assert caught.value.hint == f"{' and '.join(other for other in ORDER if other in ('hf', *HELD[name]))} can."
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_a_tied_head_is_stored_twice_where_a_layout_has_no_ties(converted: Converted) -> None:
    """And once in Hugging Face's."""
    embedding = load_weights(converted("Llama 1, tied", "hf", torch.float32))["model.embed_tokens.weight"]
    assert "lm_head.weight" not in load_weights(converted("Llama 1, tied", "hf", torch.float32))
    heads = {
        layout: stored(converted("Llama 1, tied", layout, torch.float32))[name]
        for layout, name in (("litgpt", "lm_head.weight"), ("lit-llama", "lm_head.weight"), ("meta", "output.weight"))
    }
    assert all(torch.equal(head[:290], embedding) for head in heads.values())
    assert not heads["lit-llama"][290:].any()


def test_each_layout_has_its_own_files(converted: Converted) -> None:
    """Weights, description, tokenizer and manifest, where the layout's own tools look for them."""
    companions = {"chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    own = {
        "litgpt": {"lit_model.pth", "model_config.yaml", "config.json"},
        "lit-llama": {"tiny/lit-llama.pth"},
        "meta": {"consolidated.00.pth", "params.json"},
    }
    for layout, files in own.items():
        out = converted("Llama 1", layout, torch.float32)
        found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        assert found == files | companions | {"llamaconv.json"}
        source = converted("Llama 1", "hf", torch.float32)
        assert all((out / name).read_bytes() == (source / name).read_bytes() for name in companions)


def test_what_is_different_in_the_layouts_own_code_is_said(
    converted: Converted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the result and as a warning, before the work."""
    result = to("lit-llama", converted("Llama 1", "hf", torch.float32), tmp_path / "out")
    assert result.notes == (WARNING, NO_TOKENIZER)
    assert [record.message for record in caplog.records] == [WARNING, NO_TOKENIZER]


def test_tied_tensors_that_differ_are_told_and_both_kept(converted: Converted, tmp_path: Path) -> None:
    """With both digests; the logits stay the source's, whose own head transformers takes too."""
    source = shutil.copytree(converted("Llama 3.2", "hf", torch.float32), tmp_path / "source")
    save_weights(source, **{"lm_head.weight": torch.ones(288, 96)})
    result = to("litgpt", source, tmp_path / "out", verify=True)
    (note,) = result.notes
    assert note.startswith("config.json ties lm_head.weight (sha256 ")
    assert note.endswith("), but they differ; both are kept")
    assert torch.equal(stored(result.out)["lm_head.weight"], torch.ones(288, 96))
    assert result.logits_difference == 0
