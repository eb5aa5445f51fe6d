"""Hook points: what runs inside a forward pass, and at which positions."""
