#!/usr/bin/env bash
# The same with the tools that come with Apache Kafka: examples/console_tools.sh localhost:9092
set -euo pipefail
broker=${1:?host:port of a broker}

# Headers, key and value of a line are separated by tabs; headers look like name:value,name:value.
printf 'x-tenant:labels,x-job:rivers\trivers\t{"id": "river-1", "prompt": "Name a river.", "max_tokens": 16}\n' |
    kafka-console-producer.sh --bootstrap-server "$broker" --topic inference.requests \
        --property parse.headers=true --property parse.key=true

kafka-console-consumer.sh --bootstrap-server "$broker" --topic inference.results --from-beginning --timeout-ms 5000 \
    --isolation-level read_committed --property print.headers=true --property print.key=true
