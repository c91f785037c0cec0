"""The paper's experiments: each of its tables and figures by one command."""
