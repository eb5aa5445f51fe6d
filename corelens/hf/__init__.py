"""What is known of Hugging Face models: their architecture, weights and caches."""
