"""Examples and contrast pairs, and where they are read from."""
