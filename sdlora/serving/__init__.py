"""Images over HTTP: many people's requests, with adapters of their own, in the same passes of one base model."""
