"""The model `tensorrt_llm` in Triton's Python backend: NVIDIA's tensors in and out, one of our engines behind them.

Everything that decides or computes is in the package `engine`; here requests become calls and parts become responses.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from queue import Queue
from threading import Event, Lock, Thread

import numpy as np
import triton_python_backend_utils as pb_utils

from engine.contract import INPUTS, is_stop, outputs_of, read_call
from engine.gauges import Export
from engine.parameters import EngineParameters
from engine.serving import build_engine

CANCEL_CHECKS_MAX = 8  # per check period, in turn: each is a round trip to the server process (measured: 0.1 ms)
PARTS_MAX = 128  # an engine faster than the server waits for it; a longer queue would only delay finals
CODES = {
    "INVALID_ARGUMENT": "INVALID_ARG",
    "INTERNAL": "INTERNAL",
    "UNAVAILABLE": "UNAVAILABLE",
}  # as Triton names them
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """One engine, and two threads beside it: one sends responses, one looks for cancellations."""

    def initialize(self, args):
        if int(np.__version__.split(".")[0]) >= 2:
            # The stub's pybind11 is older than numpy 2 and then reads tensors wrongly, without an error.
            raise pb_utils.TritonModelException(f"the model needs numpy < 2 in the server, not {np.__version__}")
        config = json.loads(args["model_config"])
        values = {key: value["string_value"] for key, value in config["parameters"].items()}
        parameters = EngineParameters({"max_batch_size": str(config["max_batch_size"]), **values})
        self._engine = build_engine(parameters, Path(args["model_repository"]))
        self._check_period_s = parameters.number("cancellation_check_period_ms", 100) / 1000
        self._stats_period_s = parameters.number("stats_check_period_ms", 100) / 1000
        self._exclude_input = parameters.flag("exclude_input_in_output", False)
        self._export = Export(pb_utils.MetricFamily, {"model": args["model_name"], "version": args["model_version"]})
        self._numbers = count()
        self._live = {}  # number → (request id, sender, how to stop it)
        self._lock = Lock()
        self._closing = Event()
        self._parts = Queue(PARTS_MAX)
        self._threads = [Thread(target=work, name=work.__name__, daemon=True) for work in (self._watch, self._send)]
        self._engine.start()
        for thread in self._threads:
            thread.start()

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                if self._engine.broken:  # stops fail too, so that whoever probes with them starts the server anew
                    refuse(sender, self._engine.broken, "UNAVAILABLE")
                    continue
                self._accept(request, sender)
            except ValueError as error:
                refuse(sender, str(error), "INVALID_ARGUMENT")
            except Exception as error:  # a bug of ours concerns this request alone
                refuse(sender, repr(error), "INTERNAL")

    def finalize(self):
        self._closing.set()
        self._engine.close()
        self._parts.put(None)
        for thread in self._threads:
            thread.join()

    def _accept(self, request, sender):
        found = ((each.name, pb_utils.get_input_tensor_by_name(request, each.name)) for each in INPUTS)
        inputs = {name: tensor.as_numpy() for name, tensor in found if tensor is not None}
        if is_stop(inputs):
            if not request.request_id():
                raise ValueError("a stop request needs the id of the request to stop")
            with self._lock:
                stops = [stop for id_, _, stop in self._live.values() if id_ == request.request_id()]
            for stop in stops:  # at once, as in NVIDIA's backend: only cancellations wait for the check period
                stop()
            sender.send(pb_utils.InferenceResponse(output_tensors=[]), flags=FINAL)
            return
        call = read_call(inputs, exclude_input=self._exclude_input, parameters=request.parameters())
        number = next(self._numbers)

        with self._lock:  # a final part waits for it, so that the entry is there before it is removed
            stop = self._engine.submit(call, lambda part: self._parts.put((number, sender, call, part)))
            self._live[number] = (request.request_id(), sender, stop)

    def _send(self):
        """Send what the engine gives until None comes. A send waits for the server; the engine computes meanwhile."""
        while (item := self._parts.get()) is not None:
            number, sender, call, part = item
            if part.final:
                with self._lock:  # from here on nobody may ask the sender: asked after its final it ends the server
                    self._live.pop(number, None)
            try:
                sender.send(response_of(call, part), flags=FINAL if part.final else 0)
            except Exception as error:  # one response that cannot be sent must not end the others
                pb_utils.Logger.log_error(f"a response could not be sent: {error!r}")

    def _watch(self):
        """Every check period: stop what was cancelled. Every stats period: the metrics."""
        elapsed_s, asked = 0.0, -1
        while not self._closing.wait(self._check_period_s):
            stops = []
            with self._lock:
                behind = [number for number in self._live if number > asked] or list(self._live)
            for number in behind[:CANCEL_CHECKS_MAX]:
                asked = number
                with self._lock:
                    _, sender, stop = self._live.get(number, (None, None, None))
                    if sender is not None and sender.is_cancelled():
                        stops.append(stop)
            for stop in stops:
                stop()
            elapsed_s += self._check_period_s
            if elapsed_s >= self._stats_period_s:
                elapsed_s = 0.0
                self._export.update(self._engine.gauges, self._engine.overruns)


def refuse(sender, message, status):
    sender.send(pb_utils.InferenceResponse(error=error_of(message, status)), flags=FINAL)


def error_of(message, status):
    """The error as Triton's, its status at the end of the text: on a stream Triton sends no other."""
    return pb_utils.TritonError(f"{message} [{status}]", getattr(pb_utils.TritonError, CODES[status]))


def response_of(call, part):
    if part.error is not None:
        return pb_utils.InferenceResponse(
            error=error_of(part.error, "INVALID_ARGUMENT" if part.refused else "INTERNAL")
        )
    tensors = [pb_utils.Tensor(name, array) for name, array in outputs_of(call, part).items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)
