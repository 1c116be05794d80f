"""The table, one file per subject."""
