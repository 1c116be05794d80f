"""A scheduling sidecar in front of NVIDIA Triton: online first, offline backfill, exactly-once results."""

__version__ = "0.2.0"
