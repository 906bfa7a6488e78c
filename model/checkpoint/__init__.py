"""Reading checkpoints: Hugging Face's and Mistral's own layout."""
