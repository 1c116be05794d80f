"""What the wheel carries beside code: the status page and example settings."""
