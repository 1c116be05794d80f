#!/usr/bin/env bash
# 70b-tp8: 16.4 GiB of weights and 52.9 GiB of KV cache per GPU: 1,386,634 tokens, 84 sequences of full length.
set -euo pipefail
docker run \
  --rm \
  --gpus all \
  --ipc=host \
  --ulimit memlock=-1 \
  --ulimit stack=67108864 \
  -v /srv/checkpoint:/model:ro \
  -v /srv/built:/out nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3 python3 /app/examples/models/core/llama/convert_checkpoint.py \
  --model_dir /model \
  --output_dir /out/ckpt \
  --dtype bfloat16 \
  --tp_size 8 \
  --workers 8
docker run \
  --rm \
  --gpus all \
  --ipc=host \
  --ulimit memlock=-1 \
  --ulimit stack=67108864 \
  -v /srv/checkpoint:/model:ro \
  -v /srv/built:/out nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3 trtllm-build \
  --checkpoint_dir /out/ckpt \
  --output_dir /out/engine \
  --workers 8 \
  --gpt_attention_plugin bfloat16 \
  --gemm_plugin auto \
  --remove_input_padding enable \
  --kv_cache_type paged \
  --context_fmha enable \
  --use_paged_context_fmha enable \
  --max_batch_size 64 \
  --max_input_len 16383 \
  --max_seq_len 16384 \
  --max_num_tokens 2048
