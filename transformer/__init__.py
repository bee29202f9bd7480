"""Transformers whose centre is the feed-forward network; see docs/architecture.md for the map."""
