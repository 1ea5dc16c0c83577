"""The view of a model: sites, token maps, caches and edits on an untouched Hugging Face model."""
