"""The offline lane: items from Kafka become results on Kafka, exactly once."""
