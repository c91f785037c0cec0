"""adtr where other libraries live: anomalib, the Hugging Face hub and its data sets. None is imported unasked."""
