"""Reading request bodies: h5ad, JSON and Arrow, in a process of its own with bounded memory and time."""
