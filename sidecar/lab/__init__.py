"""The scheduler in simulated time: driver, workloads, baselines, reports."""
