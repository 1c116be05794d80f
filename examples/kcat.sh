#!/usr/bin/env bash
# Send three items and read what became of them, with kcat: examples/kcat.sh localhost:9092
set -euo pipefail
broker=${1:?host:port of a broker}

for number in 1 2 3; do
    printf '{"id": "river-%d", "prompt": "Name river number %d.", "max_tokens": 16}\n' "$number" "$number"
done | kcat -P -b "$broker" -t inference.requests -k rivers -H x-tenant=labels -H x-job=rivers

# read_committed: with any other isolation level one sees results that were taken back.
kcat -C -b "$broker" -t inference.results -X isolation.level=read_committed -e -f '%h %s\n' | grep x-job=rivers || true
kcat -C -b "$broker" -t inference.requests.dlq -X isolation.level=read_committed -e -f '%h\n' | grep x-job=rivers || true
