"""`scripts/gpu_check`: what a GPU does under both lanes, without TensorRT-LLM and without a network."""
