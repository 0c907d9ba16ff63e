"""What an adapter is, told to people: inspection, charts, model cards."""
