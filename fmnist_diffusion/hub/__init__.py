"""Hugging Face Hub integration: client, checkpoint metadata, model cards, and upload of pipelines and Spaces."""
