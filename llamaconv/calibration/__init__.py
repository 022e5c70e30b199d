"""Text and tokens to calibrate on and to judge by: the built-in corpus, or files of the user's."""

from __future__ import annotations

from llamaconv.calibration.load import load_calibration, load_evaluation, require_file
from llamaconv.calibration.sequences import CalibrationSet

__all__ = ["CalibrationSet", "load_calibration", "load_evaluation", "require_file"]
