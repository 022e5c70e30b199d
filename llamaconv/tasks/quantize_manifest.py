"""llamaconv.json of a quantized checkpoint: what made it, from what, and what came of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llamaconv.calibration import CalibrationSet
from llamaconv.model.stream import LayerReport
from llamaconv.tasks.provenance import downloaded_from, libraries, version
from llamaconv.tasks.settings import CALIBRATED_ONLY

__all__ = ["manifest"]

# Settings that have no say in the bytes, or that stand in the manifest by their content.
_LEFT_OUT = ("device", "threads", "overwrite", "calibration", "layout", "size")


def manifest(
    settings: Mapping[str, Any],
    compute_dtype: torch.dtype,
    calibration: CalibrationSet | None,
    share: float,
    layers: Sequence[LayerReport],
    notes: Sequence[str],
    source: Mapping[str, str],
    home: Path,
    outputs: Mapping[str, str],
) -> dict[str, Any]:
    """No paths, no times, nothing that two runs could disagree on.

    Args:
        settings: All settings of the run, by name.
        compute_dtype: What ``auto`` came to.
        calibration: What it was calibrated on, if it was.
        share: Quantized parameters over all 2-D parameters of the blocks.
        layers: What became of each linear layer.
        notes: What the user was told about the data.
        source, outputs: sha256 of each file, by name.
        home: Where those of the source are.
    """
    left_out = _LEFT_OUT if calibration else _LEFT_OUT + CALIBRATED_ONLY
    chosen = {name: value for name, value in settings.items() if name not in left_out}
    if calibration is not None:
        chosen["compute_dtype"] = str(compute_dtype).removeprefix("torch.")
        chosen["seq_len"] = max(len(sequence) for sequence in calibration.sequences)
    return {
        "tool": "llamaconv",
        "version": version(),
        "libraries": libraries("numba" if calibration else "bitsandbytes"),
        "task": "quantize",
        "settings": chosen,
        "source": dict(sorted(source.items())),
        "downloaded_from": downloaded_from(home, source),
        "calibration": _calibration(calibration),
        "share_quantized": share,
        "layers": [_layer(layer) for layer in layers],
        "notes": list(notes),
        "outputs": dict(sorted(outputs.items())),
    }


def _calibration(calibration: CalibrationSet | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    return {
        "name": calibration.name,
        "sha256": calibration.sha256,
        "sequences": len(calibration.sequences),
        "tokens": calibration.tokens,
    }


def _layer(layer: LayerReport) -> dict[str, Any]:
    return {
        "name": layer.name,
        "mode": layer.mode,
        "bits": layer.bits,
        "group_size": layer.group_size,
        "error": layer.error,
        "damping": layer.damping,
        "damping_raises": layer.damping_raises,
        "fallback": layer.fallback,
    }
