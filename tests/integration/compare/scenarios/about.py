"""What is asked about the server and its models: health, metadata, configuration, statistics, settings."""

from __future__ import annotations

from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2

from tests.integration.compare.allowed import NO_METHOD, WATCH
from tests.integration.compare.messages import query
from tests.integration.compare.scenario import Ask, Close, Open, Scenario, Send, Subject

HEALTH = "/grpc.health.v1.Health/Check"


def about(title: str, method: str, /, *, alone: bool = False, times: int = 1, **fields: object) -> Scenario:
    """One call of `method` with these fields."""
    body = getattr(service_pb2, f"{method}Request")(**fields).SerializeToString()
    return Scenario(name=title, steps=(Ask(method=method, body=body),) * times, alone=alone, clients=("python", "go"))


def health(name: str, service: str) -> Scenario:
    """The standard health check."""
    body = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return Scenario(name=name, steps=(Ask(method=HEALTH, body=body),))


def setting(method: str, **settings: object) -> Ask:
    """One of the two calls that change a setting, with it."""
    request = getattr(service_pb2, f"{method}Request")()
    for key, value in settings.items():
        if method == "TraceSetting":
            request.settings[key].value.extend(value if isinstance(value, list) else [value])
        elif isinstance(value, bool):
            request.settings[key].bool_param = value
        elif isinstance(value, int):
            request.settings[key].uint32_param = value
        else:
            request.settings[key].string_param = str(value)
    return Ask(method=method, body=request.SerializeToString())


MODELS = ("ensemble", "tensorrt_llm", "preprocessing", "postprocessing")
ABOUT = Subject(
    title="About the server and its models",
    scenarios=(
        about("ServerLive", "ServerLive"),
        about("ServerReady", "ServerReady"),
        health("health check", ""),
        health("health check of a service by name", "inference.GRPCInferenceService"),
        health("health check of an unknown service", "no.such.Service"),
        Scenario(
            name="health watch",
            steps=(Ask(method="/grpc.health.v1.Health/Watch", body=b"", timeout_s=1.0),),
            differs=(WATCH,),
        ),
        about("ServerMetadata", "ServerMetadata"),
        *(about(f"ModelReady of {each}", "ModelReady", name=each) for each in MODELS),
        *(about(f"ModelMetadata of {each}", "ModelMetadata", name=each) for each in MODELS),
        *(about(f"ModelConfig of {each}", "ModelConfig", name=each) for each in MODELS),
        *(
            about(f"{method} of {name} {version}", method, name=name, version=version)
            for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
            for name, version in (("tensorrt_llm", "1"), ("tensorrt_llm", "7"), ("no-such", ""))
        ),
        about("ModelStatistics of all", "ModelStatistics", alone=True),
        about("ModelStatistics of preprocessing", "ModelStatistics", alone=True, name="preprocessing"),
        about("RepositoryIndex", "RepositoryIndex"),
        about("RepositoryIndex of what is ready", "RepositoryIndex", ready=True),
        about("RepositoryIndex of another repository", "RepositoryIndex", repository_name="/no/such"),
        about("load without model control", "RepositoryModelLoad", model_name="preprocessing"),
        about("unload without model control", "RepositoryModelUnload", model_name="preprocessing"),
        about("CudaSharedMemoryStatus", "CudaSharedMemoryStatus"),
        about("CudaSharedMemoryRegister without a GPU", "CudaSharedMemoryRegister", name="x", byte_size=16),
        about("TraceSetting", "TraceSetting", alone=True),
        about("TraceSetting of a model", "TraceSetting", alone=True, model_name="ensemble"),
        about("TraceSetting of an unknown model", "TraceSetting", alone=True, model_name="no-such"),
        about("LogSettings", "LogSettings", alone=True),
        Scenario(
            name="trace settings changed and changed back",
            steps=(
                setting("TraceSetting", trace_rate="9", trace_level=["TIMESTAMPS"]),
                setting("TraceSetting"),
                setting("TraceSetting", trace_rate="1000", trace_level=["OFF"]),
                setting("TraceSetting", no_such="1"),
            ),
            alone=True,
        ),
        Scenario(
            name="log settings changed and changed back",
            steps=(
                setting("LogSettings", log_verbose_level=1),
                setting("LogSettings"),
                setting("LogSettings", log_verbose_level=0),
                setting("LogSettings", log_info="yes"),
                setting("LogSettings", no_such=True),
            ),
            alone=True,
        ),
        Scenario(
            name="a method that does not exist", steps=(Ask(method="NoSuchMethod", body=b""),), differs=(NO_METHOD,)
        ),
        Scenario(
            name="a service that does not exist", steps=(Ask(method="/no.such/Method", body=b""),), differs=(NO_METHOD,)
        ),
        Scenario(
            name="bytes that are no message, to each method",
            steps=tuple(
                Ask(method=method, body=b"\xff\xff\xff")
                for method in ("ServerLive", "ModelReady", "ModelMetadata", "RepositoryIndex", "LogSettings")
            ),
        ),
        Scenario(
            name="perf_analyzer's look before and after: statistics, requests, statistics",
            steps=(
                Ask(method="ServerMetadata"),
                Ask(
                    method="ModelStatistics",
                    body=service_pb2.ModelStatisticsRequest(name="preprocessing").SerializeToString(),
                ),
                *(Ask(method="ModelInfer", body=query(id=str(each))) for each in range(3)),
                Open(),
                *(Send(body=query(id=str(each))) for each in range(3)),
                Close(),
                Ask(
                    method="ModelStatistics",
                    body=service_pb2.ModelStatisticsRequest(name="preprocessing").SerializeToString(),
                ),
            ),
            alone=True,
            clients=("python", "go"),
        ),
    ),
)
