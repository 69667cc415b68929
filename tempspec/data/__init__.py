"""Data modules, prompt sets, corpora and provenance (floor 5)."""
