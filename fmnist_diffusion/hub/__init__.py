"""Hugging Face Hub integration: model cards, and upload of pipelines and Spaces."""
