"""What is checked and told before anything is loaded."""
