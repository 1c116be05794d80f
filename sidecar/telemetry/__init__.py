"""What people look at: metrics, traces, recordings, logs and the status page."""
