"""Images, new and old: requests over the image worker, history, settings out of pictures, start images."""
