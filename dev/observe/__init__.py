"""Prometheus, an OpenTelemetry collector and Jaeger beside a deployment on this machine, and pictures of its boards."""
