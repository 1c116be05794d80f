"""What touches the world: gRPC, Kafka, the clock of real time, metrics and traces."""
