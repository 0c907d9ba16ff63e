"""Settings of other trainers as a configuration of ours. `read.import_settings` does it."""
