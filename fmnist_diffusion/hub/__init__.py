"""The Hugging Face Hub: client, metadata of checkpoints, model card, and the upload of pipelines and Spaces."""
