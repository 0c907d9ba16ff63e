"""What the loop is fed with: images and captions, encoded."""
