"""The same weights and caches in neighbouring libraries: TransformerLens and nnsight."""
