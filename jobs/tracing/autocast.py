"""torch.autocast("cuda") and its gradient scaler switch themselves off, with no more than a warning, without CUDA.

Everything then stays in fp32. Both ask torch.cuda.amp.common.amp_definitely_not_available (torch 2.13).
"""

from __future__ import annotations

import torch.cuda.amp.common


def install() -> None:
    """Let autocast be on where it is asked for."""
    assert hasattr(torch.cuda.amp.common, "amp_definitely_not_available")
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
