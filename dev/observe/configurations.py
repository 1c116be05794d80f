"""The configurations with which Prometheus, the collector and Jaeger run on this machine.

Rules, alerts and the collector's pipelines are those of deploy/: only addresses, and how often things are looked at,
are other ones here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dev.observe.programs import ROOT
from dev.triton import free_ports

SCRAPE_S = 1
RULES = ("rules.yml", "alerts.yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where everything listens, on loopback."""

    prometheus: int
    otlp_grpc: int
    otlp_http: int
    span_metrics: int
    jaeger_otlp: int
    jaeger_http: int
    jaeger_grpc: int

    @classmethod
    def free(cls) -> Ports:
        """Return ports that nobody uses now."""
        names = ("prometheus", "otlp_grpc", "otlp_http", "span_metrics", "jaeger_otlp", "jaeger_http", "jaeger_grpc")
        return cls(**dict(zip(names, free_ports(len(names)), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What Prometheus scrapes, by job: host:port of each instance."""

    jobs: dict[str, list[str]] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Write the file that Prometheus watches."""
        groups = [{"targets": targets, "labels": {"job": job}} for job, targets in self.jobs.items()]
        partial = file.with_suffix(".partial")  # Prometheus must never read half of it
        partial.write_text(yaml.safe_dump(groups))
        partial.rename(file)


def prometheus(targets: Path) -> dict[str, Any]:
    """Return Prometheus' configuration; what it scrapes stands in `targets`."""
    rules = [str(ROOT / "deploy" / "prometheus" / name) for name in RULES]
    interval = f"{SCRAPE_S}s"
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": rules,
        "scrape_configs": [{"job_name": "files", "file_sd_configs": [{"files": [str(targets)]}]}],
    }


def collector(ports: Ports, traces: Path) -> dict[str, Any]:
    """Return the collector's configuration of deploy/, with these ports, and with the kept traces in a file too."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "otel" / "collector.yaml").read_text())
    protocols = found["receivers"]["otlp"]["protocols"]
    protocols["grpc"]["endpoint"] = f"127.0.0.1:{ports.otlp_grpc}"
    protocols["http"]["endpoint"] = f"127.0.0.1:{ports.otlp_http}"
    found["exporters"]["otlp/traces"]["endpoint"] = f"127.0.0.1:{ports.jaeger_otlp}"
    found["exporters"]["prometheus"]["endpoint"] = f"127.0.0.1:{ports.span_metrics}"
    found["exporters"]["file"] = {"path": str(traces), "flush_interval": "1s"}
    found["service"]["pipelines"]["traces/kept"]["exporters"].append("file")
    found["processors"]["tail_sampling"]["decision_wait"] = "2s"
    for policy in found["processors"]["tail_sampling"]["policies"]:
        if policy["type"] == "probabilistic":
            policy["probabilistic"]["sampling_percentage"] = 100
    return found


def jaeger(ports: Ports) -> dict[str, Any]:
    """Return Jaeger's configuration: traces in memory, found through its API."""
    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
        },
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 20_000}}}},
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": {"endpoint": f"127.0.0.1:{ports.jaeger_http}"},
                "grpc": {"endpoint": f"127.0.0.1:{ports.jaeger_grpc}"},
            },
        },
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{ports.jaeger_otlp}"}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }
