"""The model in real time: a request in, the videos that `score` would recommend out."""
