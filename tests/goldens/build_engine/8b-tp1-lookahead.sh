#!/usr/bin/env bash
# 8b-tp1-lookahead: 15.0 GiB of weights and 54.2 GiB of KV cache per GPU: 444,159 tokens, 27 sequences of full length.
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
  --tp_size 1 \
  --workers 1
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
  --workers 1 \
  --gpt_attention_plugin bfloat16 \
  --gemm_plugin auto \
  --remove_input_padding enable \
  --kv_cache_type paged \
  --context_fmha enable \
  --use_paged_context_fmha enable \
  --max_batch_size 8 \
  --max_input_len 16383 \
  --max_seq_len 16384 \
  --max_num_tokens 2048 \
  --speculative_decoding_mode lookahead_decoding \
  --max_draft_len 83
