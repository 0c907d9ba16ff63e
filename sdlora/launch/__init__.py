"""Trainings, other commands and image generation in processes of their own: started, followed and told to stop.

No module here loads torch into the calling process: the web page is made of these. What runs is found out from the
processes and the files they write, never stored.
"""
