"""TensorRT-LLM's rules of in-flight batching, pure: batches, KV blocks and iteration times."""
