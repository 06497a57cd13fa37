"""Hugging Face Hub integration: checkpoint metadata, model cards, and upload of pipelines and Spaces."""
