"""Re-ingestion on a schedule: what is new, changed or gone is found by fingerprint, and nothing else is touched."""
