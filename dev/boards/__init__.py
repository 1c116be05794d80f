"""The Grafana boards of deploy/grafana, as plain Python: one module per board, written by scripts/boards."""
