"""The model behind `tensorrt_llm` on a CPU (and over tensorrt_llm.LLM on a GPU). Never imports sidecar."""
