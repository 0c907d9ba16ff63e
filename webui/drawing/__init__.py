"""What is drawn and was drawn: requests over the image worker, history, settings out of pictures, start images."""
