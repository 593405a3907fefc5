"""A network's forward pass by OpenVINO, where that pays: for a single image on a CPU.

The networks are any modules whose first argument is a batch of images.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diamond_gym.backends.waiting import log_if_slow
from diamond_gym.errors import MissingDependencyError

_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVinoForward:
    """A network that runs in OpenVINO for batches of 1, in PyTorch for all others.

    OpenVINO avoids most of the overhead of PyTorch's calls for a single image; larger batches gain little or
    nothing (`docs/performance.md`). It computes in `precision` and returns float32. The network is converted
    at its first single image, which takes seconds and is logged, and again after the number of PyTorch's
    threads has changed, which OpenVINO adopts.

    Args:
        network: In eval mode, on the CPU. Its weights are copied: later changes of them or of their precision
            affect only larger batches.
        precision: float32 or bfloat16.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """

    def __init__(self, network: nn.Module, precision: torch.dtype) -> None:
        require_openvino()
        self._name = type(network).__name__
        self._pytorch = network.forward
        self._network = copy.deepcopy(network).float()
        self._precision = _PRECISIONS[precision]
        self._requests: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()  # a request has a single set of inputs

    def __call__(self, x: Tensor, *args: Tensor) -> Tensor:
        """The network's output for a batch x."""
        if len(x) != 1:
            return self._pytorch(x, *args)
        inputs = [y.float() if y.is_floating_point() else y for y in (x, *args)]
        with self._lock:
            return _infer(self._request(inputs), inputs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_requests": {}, "_lock": None}  # a copy makes these itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}

    def _request(self, inputs: Sequence[Tensor]) -> Any:
        """Return OpenVINO's network for inputs of these shapes, converted at the first call."""
        kind = (torch.get_num_threads(), *((x.shape, x.dtype) for x in inputs))
        if kind not in self._requests:
            with log_if_slow(f"converted {self._name} to OpenVINO"):
                self._requests[kind] = _converted(self._network, inputs, self._precision)
        return self._requests[kind]


def require_openvino() -> Any:
    """Import OpenVINO and return the module.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise MissingDependencyError(
            "backend=\"openvino\" needs OpenVINO: pip install 'diamond-gym[openvino]', or choose "
            'another backend, "auto", "eager" or "inductor"'
        ) from None
    return openvino


def _converted(network: nn.Module, inputs: Sequence[Tensor], precision: str) -> Any:
    """An inference request for a network on inputs of fixed shapes.

    This takes the steps of `openvino.convert_model` one by one, because that function sends telemetry.
    """
    openvino = require_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # shapes are meant to be constants
        warnings.simplefilter("ignore", DeprecationWarning)  # of tracing; exporting takes twice as long
        decoder = TorchScriptPythonDecoder(network, example_input=tuple(inputs))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({i: list(x.shape) for i, x in enumerate(inputs)})
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino.Core().compile_model(model, "CPU", options).create_infer_request()


def _infer(request: Any, inputs: Sequence[Tensor]) -> Tensor:
    openvino = require_openvino()
    arrays = [x.contiguous().numpy() for x in inputs]  # OpenVINO reads their memory: they must outlive it
    for i, array in enumerate(arrays):
        request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
    request.infer()
    return torch.from_numpy(request.get_output_tensor(0).data.copy())
