"""Writers: feature files and folders of TFDS, complete or not there at all."""
