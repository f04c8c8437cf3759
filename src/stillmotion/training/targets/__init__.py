"""What can be trained: each target has its weights, its loss and the files that come out."""
