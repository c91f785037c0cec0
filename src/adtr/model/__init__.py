"""The network of Figure 2: embedding, reconstruction, comparison. Knows tensors, never files."""
