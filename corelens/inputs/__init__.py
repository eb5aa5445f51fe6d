"""From pictures, videos and text to tensors and a `TokenMap`."""
