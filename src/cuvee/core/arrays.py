"""Array types that every room uses. A suffix on a name gives the axes: K domains, T timesteps, B rows, L tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
