"""Decode attention over paged KV, in OpenAI Triton: flash decoding (Dao et al. 2023) with a table of blocks per row."""

import math

import torch
import triton
import triton.language as tl

GROUP_MIN = 16  # the least number of rows that tl.dot multiplies; the queries of one KV head are padded to it
PROGRAMS = 264  # two for each of an H100's 132 multiprocessors
SPLITS_MAX = 16


@triton.jit
def _paged_decode(
    q, k, v, tables, lengths, mixed_out, best_out, total_out, scale, table_stride, kv_stride, heads,
    BS: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Mix the values of one share of a row's blocks for the queries of one KV head. Grid: rows, KV heads, shares."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    length = tl.load(lengths + row)
    tiles = (length + BS - 1) // BS
    per = (tiles + SPLITS - 1) // SPLITS
    first, last = split * per, tl.minimum(split * per + per, tiles)
    g, d, t = tl.arange(0, GP), tl.arange(0, D), tl.arange(0, BS)
    asked = (row * heads + head * G + g[:, None]) * D + d[None, :]
    queries = tl.load(q + asked, mask=g[:, None] < G, other=0.0)
    best = tl.full([GP], -1.0e30, tl.float32)
    total = tl.zeros([GP], tl.float32)
    mixed = tl.zeros([GP, D], tl.float32)
    for tile in range(first, last):
        block = tl.load(tables + row * table_stride + tile).to(tl.int64)
        at = (block * BS + t)[:, None] * kv_stride + head * D + d[None, :]
        scores = tl.dot(queries, tl.trans(tl.load(k + at))) * scale
        scores = tl.where((tile * BS + t)[None, :] < length, scores, -1.0e30)
        higher = tl.maximum(best, tl.max(scores, 1))
        shares = tl.exp(scores - higher[:, None])
        shrink = tl.exp(best - higher)
        total = total * shrink + tl.sum(shares, 1)
        values = tl.load(v + at)
        mixed = mixed * shrink[:, None] + tl.dot(shares.to(values.dtype), values)
        best = higher
    base = ((row * kv_heads + head) * SPLITS + split) * GP
    tl.store(mixed_out + (base + g)[:, None] * D + d[None, :], mixed)
    tl.store(best_out + base + g, best)
    tl.store(total_out + base + g, total)


def paged_decode(q, k, v, tables, lengths, block_tokens):
    """Return the attention of one new token per row, (rows, heads, head_dim).

    `q` is (rows, heads, head_dim); `k` and `v` are (places, KV heads, head_dim); `tables` (rows, n) names the blocks of
    each row; `lengths` counts the tokens to attend to, the new one included.
    """
    rows, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    # So many shares of each row's blocks that the GPU has enough programs, a power of two.
    splits = min(SPLITS_MAX, 1 << (max(1, PROGRAMS // (rows * kv_heads)) - 1).bit_length())
    mixed = torch.empty(rows, kv_heads, splits, GROUP_MIN, head_dim, device=q.device, dtype=torch.float32)
    best = torch.empty(rows, kv_heads, splits, GROUP_MIN, device=q.device, dtype=torch.float32)
    total = torch.empty_like(best)
    _paged_decode[(rows, kv_heads, splits)](
        q, k, v, tables, lengths, mixed, best, total, 1 / math.sqrt(head_dim), tables.stride(0), kv_heads * head_dim,
        heads, BS=block_tokens, G=heads // kv_heads, GP=GROUP_MIN, D=head_dim, SPLITS=splits, num_warps=4, num_stages=2,
    )  # fmt: skip
    weight = torch.exp(best - best.amax(2, keepdim=True))
    joined = (mixed * weight[..., None]).sum(2) / (total * weight).sum(2)[..., None]
    return joined[:, :, : heads // kv_heads].reshape(rows, heads, head_dim).to(q.dtype)
