"""What Mistral and Mixtral are: maths, files, tokens. No Ray, no network."""
