"""Small exposures and in-memory references for the tests of the ramp stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.exposure import CAL_STEP_KEYS, Exposure, Level


class FakeReference:
    """A reference whose ``roman`` tree is a dict; arrays are handed out read-only, as mapped files are."""

    def __init__(self, path: str = "/references/fake.asdf", **tree: Any) -> None:
        self.path = Path(path)
        self.recorded_name = path
        self._tree = tree

    def value(self, *keys: str) -> Any:
        node: Any = self._tree
        for key in keys:
            node = node[key]
        return node

    def array(self, *keys: str) -> Any:
        view = self.value(*keys).view()
        view.flags.writeable = False
        return view


def ramp_exposure(
    data: Any,
    *,
    read_pattern: list[list[int]] | None = None,
    groupdq: Any = None,
    pixeldq: Any = None,
    amp33: Any = None,
    detector: str = "WFI01",
    frame_time: float = 3.04,
) -> Exposure:
    """A ramp as dq_init leaves it."""
    data = np.asarray(data, np.float32)
    n, rows, columns = data.shape
    pattern = [[i + 1] for i in range(n)] if read_pattern is None else read_pattern
    arrays = {
        "data": data,
        "groupdq": np.zeros(data.shape, np.uint8) if groupdq is None else groupdq,
        "pixeldq": np.zeros((rows, columns), np.uint32) if pixeldq is None else pixeldq,
        "amp33": np.zeros((n, rows, 128), np.uint16) if amp33 is None else amp33,
        "border_ref_pix_left": data[..., :4].copy(),
        "border_ref_pix_right": data[..., -4:].copy(),
        "border_ref_pix_top": data[..., :4, :].copy(),
        "border_ref_pix_bottom": data[..., -4:, :].copy(),
    }
    meta = {
        "instrument": {"detector": detector},
        "exposure": {"type": "WFI_IMAGE", "frame_time": frame_time, "read_pattern": pattern},
        "cal_step": dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE"),
        "ref_file": {},
    }
    return Exposure("r0000101001001001001_0001_wfi01", Level.RAMP, meta, arrays)
