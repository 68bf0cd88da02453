"""Files of the master: uploaded blobs and the outputs of attempts."""
