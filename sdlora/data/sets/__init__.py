"""Named datasets: listed, filled by uploads, captions edited one or many at a time, changes undone."""
