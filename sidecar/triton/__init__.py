"""The client of engines: streams, stops, statuses, tensors, tokens and gauges of one Triton."""
