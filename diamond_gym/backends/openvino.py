"""A network's forward pass by OpenVINO, where that pays: for a few images on a CPU.

The networks are any modules whose first argument is a batch of images.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diamond_gym import files as disk
from diamond_gym.backends.threads import using_threads
from diamond_gym.backends.trial import cpu_name, digest, measured, tried
from diamond_gym.backends.waiting import log_if_slow
from diamond_gym.errors import MissingDependencyError, first_line
from diamond_gym.untrusted import opened

MAX_TRIAL_SECONDS = 10.0
"""After so much processor time the conversion of a network on trial is given up; a world model has two."""
MAX_BATCH = 16
"""The most images of a batch: for 32, it is 1.15 times as fast as PyTorch, too little for a trial."""
MAX_KEPT = 32
"""The most converted networks in the cache folder, of 1 to 20 MB each."""
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_CHECKSUM_BYTES = 32
_IMPORTING_PROCESS = os.getpid()
"""A fork inherits the state of OpenVINO's threads but not the threads, and would wait for them forever."""

_log = logging.getLogger(__name__)


class OpenVinoForward:
    """A network that runs in OpenVINO for batches of 1 and of one further size, in PyTorch for all others.

    OpenVINO avoids most of the overhead of PyTorch's calls for a few images. It computes in `precision` and
    returns float32. The network is converted for a size at its first batch, which takes seconds and is
    logged, and again after the number of PyTorch's threads has changed, which OpenVINO adopts. What was
    converted is kept in the cache folder.

    Args:
        network: In eval mode, on the CPU. Its weights are copied: later changes of them or of their precision
            affect only other batches.
        precision: float32 or bfloat16; OpenVINO computes in float32 where the processor lacks bfloat16.
        batch_size: The further size; above `MAX_BATCH`, there is none.
        on_trial: Whether to use it only if it is faster here (see `trial`), and never in a forked process.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """

    def __init__(
        self, network: nn.Module, precision: torch.dtype, *, batch_size: int = 1, on_trial: bool = False
    ) -> None:
        require_openvino()
        self._name = type(network).__name__
        self._pytorch = network.forward
        self._network = copy.deepcopy(network).float()
        self._precision = _PRECISIONS[precision]
        self._batch_sizes = {1, batch_size} if batch_size <= MAX_BATCH else {1}
        self._on_trial = on_trial
        self._requests: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()  # a request has a single set of inputs

    def __call__(self, x: Tensor, *args: Tensor) -> Tensor:
        """The network's output for a batch x."""
        if len(x) not in self._batch_sizes or (self._on_trial and os.getpid() != _IMPORTING_PROCESS):
            return self._pytorch(x, *args)
        inputs = [y.float() if y.is_floating_point() else y for y in (x, *args)]
        with self._lock:
            request = self._request(inputs, (x, *args))
            if request is not None:
                return _infer(request, inputs)
        return self._pytorch(x, *args)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_requests": {}, "_lock": None}  # a copy makes these itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}

    def is_used(self, batch_size: int) -> bool:
        """Whether batches of this size run in OpenVINO; on trial, not before the first of them."""
        if not self._on_trial:
            return batch_size in self._batch_sizes
        used = (kind[1][0][0] for kind, request in self._requests.items() if request is not None)
        return batch_size in used

    def _request(self, inputs: Sequence[Tensor], given: Sequence[Tensor]) -> Any:
        """Return OpenVINO's network for inputs of these shapes; None if PyTorch's is faster.

        Args:
            inputs: The inputs in float32.
            given: The inputs as PyTorch's network takes them.
        """
        kind = (torch.get_num_threads(), *((x.shape, x.dtype) for x in inputs))
        if kind not in self._requests:
            self._requests[kind] = self._chosen(inputs, given, kind)
        return self._requests[kind]

    def _chosen(self, inputs: Sequence[Tensor], given: Sequence[Tensor], kind: tuple[Any, ...]) -> Any:
        if not self._on_trial:
            return self._converted(inputs, kind)
        requests: list[Any] = []

        def measure() -> tuple[float, float] | None:
            try:
                requests.append(self._converted(inputs, kind, MAX_TRIAL_SECONDS))
            except Exception as error:  # any error that converting can raise: then PyTorch is used
                _log.warning("%s stays in PyTorch: %s", self._name, first_line(error))
                return None
            return measured(lambda: self._pytorch(*given), lambda: _infer(requests[0], inputs))

        key = ("openvino", require_openvino().__version__, self._precision, kind, repr(self._network))
        if not tried(f"OpenVINO for {self._name}, batches of {len(inputs[0])}", key, measure):
            return None
        return requests[0] if requests else self._converted(inputs, kind)

    def _converted(
        self, inputs: Sequence[Tensor], kind: tuple[Any, ...], max_seconds: float = math.inf
    ) -> Any:
        """An inference request for the network on inputs of fixed shapes, from the cache or converted now.

        Raises:
            TimeoutError: Converting takes longer than accepted; noticed after each of its steps.
        """
        openvino = require_openvino()
        options = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        weights = (
            hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in self._network.state_dict().values()
        )
        versions = openvino.__version__, torch.__version__, _code_of(self._network)
        key = digest(cpu_name(), *versions, options, kind, self._network, *weights)
        file = disk.cache_folder() / "openvino" / f"{key}.blob"
        compiled = _kept(file, options)
        if compiled is None:
            with log_if_slow(f"converted {self._name} to OpenVINO"):
                model = _convert(self._network, inputs, time.process_time() + max_seconds)
                compiled = openvino.Core().compile_model(model, "CPU", options)
            _keep(file, compiled)
        return compiled.create_infer_request()


def _code_of(network: nn.Module) -> str:
    """A short name of the code of a network's layers, which may compute otherwise in another version."""
    files = {inspect.getfile(type(layer)) for layer in network.modules()}
    return digest(*(Path(file).read_bytes() for file in sorted(files)))


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


def _convert(network: nn.Module, inputs: Sequence[Tensor], deadline: float) -> Any:
    """OpenVINO's model of a network for inputs of fixed shapes.

    This takes the steps of `openvino.convert_model` one by one, because that function sends telemetry.
    Tracing runs the network several times, in one thread, because several would wait for each other for
    minutes beside other busy processes.

    Raises:
        TimeoutError: A step ended after the deadline, in seconds of `time.process_time`.
    """
    require_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad(), using_threads(1):
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # shapes are meant to be constants
        warnings.simplefilter("ignore", DeprecationWarning)  # of tracing; exporting takes twice as long
        decoder = TorchScriptPythonDecoder(network, example_input=tuple(inputs))
    _check_time(deadline)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    _check_time(deadline)
    model.reshape({i: list(x.shape) for i, x in enumerate(inputs)})
    return model


def _check_time(deadline: float) -> None:
    if time.process_time() > deadline:
        raise TimeoutError(f"converting it takes longer than {MAX_TRIAL_SECONDS:.0f} s of a core")


def _kept(file: Path, options: dict[str, Any]) -> Any:
    """The compiled model in a file of `_keep`; None if there is none, or none that is whole."""
    if not file.exists():
        return None
    try:
        with opened(file) as content:
            checksum, model = content.read(_CHECKSUM_BYTES), content.read()
        if hashlib.sha256(model).digest() != checksum:
            raise ValueError("it is damaged")
        os.utime(file)  # it was used just now
        return require_openvino().Core().import_model(model, "CPU", options)
    except Exception as error:  # such as a model of another version of OpenVINO
        _log.warning("converting again: %s cannot be used, %s", file, first_line(error))
        return None


def _keep(file: Path, compiled: Any) -> None:
    """Keep a compiled model in a file, behind its checksum, and only the `MAX_KEPT` models used last."""
    model = compiled.export_model().getvalue()
    try:
        disk.write_file(file, hashlib.sha256(model).digest() + model)
        by_age = sorted(file.parent.glob("*.blob"), key=lambda path: path.stat().st_mtime)
        for old in by_age[:-MAX_KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:  # a CacheError is one, too
        _log.warning("what was converted is not kept: %s, or set DIAMOND_GYM_CACHE to one", error)


def _infer(request: Any, inputs: Sequence[Tensor]) -> Tensor:
    openvino = require_openvino()
    arrays = [x.contiguous().numpy() for x in inputs]  # OpenVINO reads their memory: they must outlive it
    for i, array in enumerate(arrays):
        request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
    request.infer()
    return torch.from_numpy(request.get_output_tensor(0).data.copy())
