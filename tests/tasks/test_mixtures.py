"""Mixtures of experts are converted, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llamaconv.errors import UnsupportedError
from llamaconv.tasks.evaluate import EvaluateSettings, evaluate
from llamaconv.tasks.quantize import QuantizeSettings, quantize
from tests.conftest import Checkpoint

TASKS: dict[str, Callable[[Path, Path], object]] = {
    "gptq.int4": lambda source, out: quantize(source, out, QuantizeSettings("gptq.int4")),
    "llm.int8": lambda source, out: quantize(source, out, QuantizeSettings("llm.int8", skip=("*.mlp.*",))),
    "evaluate": lambda source, out: evaluate(source, EvaluateSettings()),
}


@pytest.mark.parametrize("task", TASKS)
def test_mixtures_are_refused(checkpoint: Checkpoint, task: str, tmp_path: Path) -> None:
    """Whatever is skipped: transformers holds experts under other names than the files do, and fused."""
    source = checkpoint("mixtral")
    with pytest.raises(UnsupportedError) as caught:
        TASKS[task](source, tmp_path / "out")
    assert str(caught.value) == f"{source}: a mixture of 5 experts in each layer"
    assert caught.value.hint == "Mixtures of experts can be converted, not quantized or evaluated."
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []
