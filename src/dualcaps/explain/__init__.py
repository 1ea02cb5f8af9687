"""What the capsules see: pictures and numbers computed from a trained network."""
