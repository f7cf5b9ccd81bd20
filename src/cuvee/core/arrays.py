"""Array types used by every package.

A suffix on a variable name lists its axes: K domains, T timesteps, B rows, L tokens, N runs or
items. `weights_K` has shape (K,) and `losses_TK` has shape (T, K).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
