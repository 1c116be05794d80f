"""Any Kafka producer will do; this one is confluent-kafka's: python examples/producer.py localhost:9092 [TOPIC]

One JSON object a record. Headers say whose item it is and what belongs together; equal beginnings have equal keys.
"""

import json
import sys

from confluent_kafka import Producer


def main(servers: str, topic: str = "inference.requests") -> None:
    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True})
    headers = {"x-tenant": "labels", "x-job": "reviews-by-hand"}
    for number in range(20):
        item = {"id": f"review-{number}", "prompt": f"Is review {number} positive or negative?", "max_tokens": 8}
        producer.produce(topic, json.dumps(item), key="reviews", headers=headers)
        producer.poll(0)
    left = producer.flush(30)
    print(
        f"{20 - left} items sent to {topic}; next: sidecar results --job reviews-by-hand --tenant labels -o out.jsonl"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
