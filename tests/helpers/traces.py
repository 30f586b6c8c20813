"""Records the inputs and outputs of each layer of a PyTorch original."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass
class Trace:
    """The inputs and outputs [T, C] of each layer of the original, in order of completion."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def traced(network: Any, features: np.ndarray, kept: Callable[[str, Any], bool]) -> tuple[np.ndarray, Trace]:
    """Returns the original's embedding [D] of features [T, M], and the trace of the layers that `kept` selects."""
    import torch  # tests that trace are skipped if torch is missing

    trace, hooks = Trace({}, {}), []

    def hook(name: str) -> Callable[..., None]:
        def keep(module: Any, given: tuple[Any, ...], result: Any) -> None:
            # The output is copied, because the following ReLU may work in place.
            trace.inputs[name], trace.outputs[name] = (np.array(x[0].detach().numpy().T) for x in (given[0], result))

        return keep

    for name, module in network.named_modules():
        if kept(name, module):
            hooks.append(module.register_forward_hook(hook(name)))
    with torch.no_grad():
        result = network(torch.from_numpy(features)[None])
    for handle in hooks:
        handle.remove()
    return (result[-1] if isinstance(result, tuple) else result).numpy().reshape(-1), trace
