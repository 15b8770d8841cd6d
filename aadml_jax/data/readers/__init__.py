"""Readers: data sets from files, from folders of TFDS and by the names of the catalogue."""
