"""Hugging Face Spaces: what must be set in one, and the repository that makes one."""
