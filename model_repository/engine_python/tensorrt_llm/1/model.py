"""The model `tensorrt_llm` in Triton's Python backend: NVIDIA's tensors in and out, one of our engines behind them.

Everything that decides or computes is in the package `engine`; here requests become calls and pieces become responses.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from threading import Event, Lock, Thread

import numpy as np
import triton_python_backend_utils as pb_utils

from engine.contract import INPUTS, is_stop, outputs_of, read_call
from engine.gauges import BUCKETS, COUNTERS, GAUGES, HISTOGRAMS
from engine.serving import Parameters, build_engine

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """One engine. Responses are sent from its thread; a watch thread looks for stops and cancellations."""

    def initialize(self, args):
        if int(np.__version__.split(".")[0]) >= 2:
            # The stub's pybind11 is older than numpy 2 and then reads tensors wrongly, without an error.
            raise pb_utils.TritonModelException(f"the model needs numpy < 2 in the server, not {np.__version__}")
        config = json.loads(args["model_config"])
        values = {key: value["string_value"] for key, value in config["parameters"].items()}
        parameters = Parameters(values)
        self._engine = build_engine(parameters, Path(args["model_repository"]))
        self._check_period_s = parameters.number("cancellation_check_period_ms", 100) / 1000
        self._stats_period_s = parameters.number("stats_check_period_ms", 100) / 1000
        self._exclude_input = parameters.flag("exclude_input_in_output", False)
        self._metrics = Metrics({"model": args["model_name"], "version": args["model_version"]})
        self._numbers = count()
        self._live = {}  # number → (request id, sender, how to stop it)
        self._stopping = set()  # request ids
        self._lock = Lock()
        self._closing = Event()
        self._watch_thread = Thread(target=self._watch, name="watch", daemon=True)
        self._engine.start()
        self._watch_thread.start()

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._accept(request, sender)
            except ValueError as error:
                failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                sender.send(pb_utils.InferenceResponse(error=failure), flags=FINAL)

    def finalize(self):
        self._closing.set()
        self._watch_thread.join()
        self._engine.close()

    def _accept(self, request, sender):
        found = ((each.name, pb_utils.get_input_tensor_by_name(request, each.name)) for each in INPUTS)
        inputs = {name: tensor.as_numpy() for name, tensor in found if tensor is not None}
        if is_stop(inputs):
            if not request.request_id():
                raise ValueError("a stop request needs the id of the request to stop")
            with self._lock:
                self._stopping.add(request.request_id())
            sender.send(pb_utils.InferenceResponse(output_tensors=[]), flags=FINAL)
            return
        call = read_call(inputs, exclude_input=self._exclude_input)
        number = next(self._numbers)

        def deliver(piece):
            if piece.final:
                with self._lock:
                    self._live.pop(number, None)
            sender.send(response_of(call, piece), flags=FINAL if piece.final else 0)

        with self._lock:  # the first piece waits for it, so that the entry is there before it is removed
            self._live[number] = (request.request_id(), sender, self._engine.submit(call, deliver))

    def _watch(self):
        """Every check period: stop what was asked to stop or was cancelled. Every stats period: the metrics."""
        elapsed_s = 0.0
        while not self._closing.wait(self._check_period_s):
            with self._lock:
                numbers, stopping, self._stopping = list(self._live), self._stopping, set()
            for number in numbers:
                self._stop_if_asked(number, stopping)
            elapsed_s += self._check_period_s
            if elapsed_s >= self._stats_period_s:
                elapsed_s = 0.0
                self._metrics.update(self._engine)

    def _stop_if_asked(self, number, stopping):
        with self._lock:  # a sender asked after its final response crashes the server: it is freed by then
            if number in self._live:
                request_id, sender, stop = self._live[number]
                if request_id in stopping or sender.is_cancelled():
                    stop()


def response_of(call, piece):
    if piece.error is not None:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(piece.error))
    tensors = [pb_utils.Tensor(name, array) for name, array in outputs_of(call, piece).items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


class Metrics:
    """The custom metrics of the model; see engine/gauges.py for what they mean."""

    def __init__(self, labels):
        def family(name, kind, description):
            return pb_utils.MetricFamily(name=name, description=description, kind=kind)

        self._families = []  # a metric lives as long as its family
        self._gauges, self._lengths, self._counters = {}, [], []
        self._iterations = -1
        for name, (label, values) in GAUGES.items():
            self._families.append(family(name, pb_utils.MetricFamily.GAUGE, f"TensorRT-LLM {name}"))
            for value in values:
                self._gauges[name, value] = self._families[-1].Metric(labels={**labels, label: value})
        for name, value in HISTOGRAMS.items():
            self._families.append(family(name, pb_utils.MetricFamily.HISTOGRAM, f"TensorRT-LLM {name}"))
            both = {**labels, "response_metric_type": value}
            self._lengths.append(self._families[-1].Metric(labels=both, buckets=list(BUCKETS)))
        for name, description in COUNTERS.items():
            self._families.append(family(name, pb_utils.MetricFamily.COUNTER, description))
            self._counters.append(self._families[-1].Metric(labels=labels))

    def update(self, engine):
        gauges = engine.gauges
        if gauges.iterations == self._iterations:
            return  # upstream's habit: an idle engine's gauges keep what the last iteration said
        self._iterations = gauges.iterations
        for key, value in list(gauges.values.items()):
            self._gauges[key].set(value)
        for lengths in [gauges.lengths.pop() for _ in range(len(gauges.lengths))]:
            for metric, length in zip(self._lengths, lengths, strict=True):
                metric.observe(length)
        for metric, total in zip(self._counters, (gauges.iterations, engine.overruns), strict=True):
            metric.increment(total - metric.value())
